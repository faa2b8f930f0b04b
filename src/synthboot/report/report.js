"use strict";
// Text of the corpus is placed with textContent alone: nothing in it becomes markup or script.
function card(title, parts) {
  const box = document.createElement("article");
  const head = document.createElement("h3");
  const text = document.createElement("p");
  box.className = "card";
  head.textContent = title;
  text.dir = "auto"; // Arabic and Hebrew run from the right
  for (const [part, mark] of parts) {
    const piece = document.createElement(mark ? "mark" : "span");
    if (mark) piece.className = "m" + mark;
    piece.textContent = part;
    text.append(piece);
  }
  box.append(head, text);
  return box;
}

function pairCards(pair) {
  return [
    card("d1", [[pair.d1, 0]]),
    card("real d2, similarity " + pair.similarity.toFixed(3), pair.d2),
  ];
}

function exampleCards(example) {
  return [...pairCards(example), ...example.sampled.map((sample, i) => {
    const cut = sample.finish === "end" ? "" : ", cut for want of room";
    const nats = (-sample.mean_logprob).toFixed(2) + " nats a token";
    return card("sampled d2 no. " + (i + 1) + ", " + nats + cut, sample.segments);
  })];
}

const plain = (parts) => parts.map(([part]) => part).join("");

function searched(item) {
  const texts = [item.d1, plain(item.d2), ...(item.sampled || []).map((s) => plain(s.segments))];
  return texts.join("\n").toLowerCase();
}

// One item at a time, those that hold what is searched for.
function browse(id, toCards, moved) {
  const root = document.getElementById(id);
  if (!root) return;
  const items = JSON.parse(root.querySelector("script").textContent);
  const find = (selector) => root.querySelector(selector);
  const shown = find(".shown");
  const slider = find("[type=range]");
  const search = find("[type=search]");
  let matching = items;

  function row(item) {
    const cards = document.createElement("div");
    cards.className = "cards";
    cards.append(...toCards(item));
    return cards;
  }
  function show() {
    const at = Number(slider.value);
    shown.replaceChildren(...matching.slice(at, at + 1).map(row));
    const place = matching.length ? at + 1 + " of " + matching.length : "nothing found";
    find("output").textContent = place;
    slider.setAttribute("aria-valuetext", place);
    if (matching.length && moved) moved(matching[at]);
  }
  function turn(step) {
    slider.value = (Number(slider.value) + step + matching.length) % (matching.length || 1);
    show();
  }
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    matching = items.filter((item) => searched(item).includes(wanted));
    slider.max = Math.max(0, matching.length - 1);
    slider.value = 0;
    show();
  });
  slider.addEventListener("input", show);
  find(".previous").addEventListener("click", () => turn(-1));
  find(".next").addEventListener("click", () => turn(1));
  // Paper has no pages to turn.
  addEventListener("beforeprint", () => shown.replaceChildren(...items.map(row)));
  addEventListener("afterprint", show);
  show();
}

// Where the pair that is shown lies among all.
function mark(pair) {
  const place = document.getElementById("similarities");
  const svg = place && place.querySelector("svg");
  if (!svg) return;
  const { low, high, start, end } = place.dataset;
  const share = (pair.similarity - low) / (high - low);
  let line = svg.querySelector(".here");
  if (!line) {
    line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    line.setAttribute("class", "here");
    line.setAttribute("y1", "26");
    line.setAttribute("y2", "236");
    svg.append(line);
  }
  const x = Number(start) + share * (end - start);
  line.setAttribute("x1", x);
  line.setAttribute("x2", x);
}

browse("pair-browser", pairCards, mark);
browse("example-browser", exampleCards);
// Open what is folded, but for the numbers beneath figures, which are in the figures.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details:not(.numbers)")) part.open = true;
});
