# ruff: noqa: RUF001
"""Every script: near-copies are found, different texts kept, copied questions found, twins neighbours. Texts are made from a
few sentences of each language; `benchmarks/languages.py` does it with real text."""

import random
import re
import time
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
import regex

from synthboot import config
from synthboot.data import near_duplicates, tasks, words
from synthboot.stages import embed
from tests.limits import limit

SENTENCES = {
    "English": "The old mill stood by the river, and nobody had opened its doors since the miller went away in autumn.",
    "Vietnamese": "Ngôi làng nhỏ nằm bên bờ sông, nơi những người đánh cá trở về mỗi buổi chiều với thuyền đầy tôm cá tươi.",
    "Russian": "Старая мельница стояла у реки, и никто не открывал её дверей с тех пор, как мельник уехал осенью.",
    "Greek": "Ο παλιός μύλος στεκόταν δίπλα στο ποτάμι και κανείς δεν είχε ανοίξει τις πόρτες του από το φθινόπωρο.",
    "Arabic": "كَانَتِ الطَّاحُونَةُ القَدِيمَةُ تَقِفُ عِنْدَ النَّهْرِ وَلَمْ يَفْتَحْ أَحَدٌ أَبْوَابَهَا مُنْذُ الخَرِيفِ المَاضِي",
    "Hebrew": "הַטַּחֲנָה הַיְשָׁנָה עָמְדָה לְיַד הַנָּהָר וְאִישׁ לֹא פָּתַח אֶת דְּלָתוֹתֶיהָ מֵאָז הַסְּתָו הָאַחֲרוֹן",
    "Hindi": "पुरानी चक्की नदी के किनारे खड़ी थी और शरद ऋतु के बाद से किसी ने उसके दरवाज़े नहीं खोले थे।",
    "Tamil": "பழைய ஆலை ஆற்றங்கரையில் நின்றது, இலையுதிர் காலம் முதல் யாரும் அதன் கதவுகளைத் திறக்கவில்லை என்று சொன்னார்கள்.",
    "Thai": "โรงสีเก่าตั้งอยู่ริมแม่น้ำและไม่มีใครเปิดประตูของมันเลยตั้งแต่คนโม่แป้งจากไปในฤดูใบไม้ร่วงปีที่แล้ว",
    "Lao": "ໂຮງສີເກົ່າຕັ້ງຢູ່ແຄມແມ່ນ້ຳ ແລະບໍ່ມີໃຜເປີດປະຕູຂອງມັນເລີຍຕັ້ງແຕ່ລະດູໃບໄມ້ຫຼົ່ນປີກາຍນີ້",
    "Khmer": "រោងម៉ាស៊ីនកិនស្រូវចាស់ស្ថិតនៅក្បែរមាត់ទន្លេហើយគ្មាននរណាម្នាក់បើកទ្វាររបស់វាទេតាំងពីរដូវស្លឹកឈើជ្រុះ",
    "Burmese": "ဆန်စက်ဟောင်းသည်မြစ်ကမ်းဘေးတွင်ရှိပြီးဆောင်းဦးကတည်းကမည်သူမျှတံခါးမဖွင့်ခဲ့ကြပါ",
    "Tibetan": "རང་འཐག་རྙིང་པ་ཆུ་བོའི་འགྲམ་དུ་ཡོད་ཅིང་སྟོན་ཁ་ནས་བཟུང་སུས་ཀྱང་སྒོ་ཕྱེ་མ་མྱོང་ཞེས་བཤད།",
    "Chinese": "旧磨坊立在河边，自从磨坊主秋天离开以后，就再也没有人打开过它的大门，只有燕子每年春天回来筑巢。",
    "Japanese": "古い水車小屋は川のそばに立っていて、粉屋が秋に去ってからというもの、だれもその扉を開けたことがなかった。",
    "Korean": "오래된 방앗간은 강가에 서 있었고 가을에 방앗간 주인이 떠난 뒤로는 아무도 그 문을 열어 본 적이 없었다.",
    "Amharic": "አሮጌው ወፍጮ ቤት ከወንዙ አጠገብ ቆሞ ነበር ባለወፍጮው በመከር ከሄደ ጀምሮም ማንም ሰው በሩን ከፍቶ አያውቅም።",
    "Braille": "⠮⠀⠕⠇⠙⠀⠍⠊⠇⠇⠀⠌⠕⠕⠙⠀⠃⠽⠀⠮⠀⠗⠊⠧⠻⠀⠯⠀⠝⠕⠃⠕⠙⠽⠀⠓⠁⠙⠀⠕⠏⠢⠫⠀⠊⠞⠎⠀⠙⠕⠕⠗⠎",
    "mathematical": "𝐓𝐡𝐞 𝐨𝐥𝐝 𝐦𝐢𝐥𝐥 𝐬𝐭𝐨𝐨𝐝 𝐛𝐲 𝐭𝐡𝐞 𝐫𝐢𝐯𝐞𝐫 𝐚𝐧𝐝 𝐧𝐨𝐛𝐨𝐝𝐲 𝐡𝐚𝐝 𝐨𝐩𝐞𝐧𝐞𝐝 𝐢𝐭𝐬 𝐝𝐨𝐨𝐫𝐬",
}
SOLID = {"Thai", "Lao", "Khmer", "Burmese", "Chinese", "Japanese"}


def letters(text: str) -> list[str]:
    """The characters of a text, each with its marks."""
    found: list[str] = regex.findall(r".\p{M}*", text, regex.DOTALL)
    return found


def made(language: str, count: int, size: int = 120) -> list[str]:
    """Documents of words (two of a sentence in one; letters where there are no spaces) in random order."""
    rng, sentence = random.Random(3), SENTENCES[language]
    parts = letters(re.sub(r"\W\b|\s", "", sentence)) if language in SOLID else re.split("[ ⠀་]", sentence)
    parts = parts if language in SOLID else [a + b for a in parts for b in parts]
    gap = {"Braille": "⠀", "Tibetan": "་"}.get(language, "" if language in SOLID else " ")
    return [gap.join(rng.choice(parts) for _ in range(size)) for _ in range(count)]


@pytest.mark.parametrize("language", SENTENCES)
def test_near_copies_are_found_and_different_texts_kept_in(language: str) -> None:
    texts = made(language, 8)
    copies = [unicodedata.normalize("NFD", t[: len(t) // 2] + t[len(t) // 2 + 1 :]) for t in texts]  # a letter is gone
    group = near_duplicates.groups(near_duplicates.signatures(texts + copies), texts + copies, 0.8)
    assert (group[:8] == group[8:]).all()
    assert len(set(group.tolist())) == 8


def test_a_letter_is_less_than_a_word() -> None:
    by_letter = {"Chinese": 2 / 3, "Japanese": 2 / 3, "Korean": 2 / 3} | dict.fromkeys(
        ["Thai", "Lao", "Khmer", "Burmese"], 1 / 3
    )
    for language, sentence in SENTENCES.items():
        assert words.weight(words.words(sentence)) == by_letter.get(language, 1), language
    assert words.weight(words.words("ACGT" * 20)) == 1 / 3


@pytest.mark.parametrize("language", SENTENCES)
def test_a_copied_question_is_found_however_it_is_composed_in(language: str) -> None:
    question, *others = SENTENCES[language], *made(language, 3)
    parts = letters(question) if language in SOLID else re.findall("[^ ⠀་]+[ ⠀་]?", question)
    short = "".join(parts[: 2 * len(parts) // 3])
    asked = [tasks.Item(str(n), "open", ("",), (), 0, bare=(q, "42")) for n, q in enumerate([question, short, others[0]])]
    for form in ("NFC", "NFD", "NFKD"):
        text = f"{others[1]} {unicodedata.normalize(form, question)} 43 {others[2]}"
        seen, unclear = tasks.seen(asked, [text])
        assert seen.tolist() == [True, True, False]
        assert not unclear.any()


def test_twins_in_other_forms_are_neighbours_in_every_script() -> None:
    texts = [t for language in SENTENCES for t in made(language, 3, 20)]
    fitted = embed.fit(texts, config.Embed(dim=16, hash_features=1 << 14), 0)
    twins = fitted([unicodedata.normalize("NFD", t) for t in texts])
    assert np.allclose((twins * fitted(texts)).sum(1), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cخواهم", ["میخواهم"]),  # a joiner is not seen
        ("日本のＰＣ、ｶﾅ", ["日", "本", "の", "pc", "カ", "ナ"]),
        ("ខ្មែរ\u200bខ", ["ខ្", "មែ", "រ", "ខ"]),
        ("Don't—stop, Straße ﬁn", ["don", "t", "stop", "strasse", "fin"]),
        ("nice 😀👍🏽 and ⠓⠊⠀⠁", ["nice", "😀", "👍", "and", "⠓⠊", "⠁"]),
        ("x = a+b;", ["x", "a", "b"]),
        ("བོད་སྐད", ["བོད", "སྐད"]),
        ("\ue000\ue001", ["\ue000\ue001"]),  # private letters
        ("\u200b \t", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words.words(text) == expected


def test_the_terms_of_scripts_without_spaces_are_letters_and_pairs_of_them() -> None:
    assert [len(words.terms(text)) for text in ("天地玄黄天", "ภาษาไทย", "two words")] == [9, 13, 2]


def test_symbols_are_words_on_request() -> None:
    assert words.words("x = a+b; ≠←ü", symbols=True) == ["x", "=", "a", "+", "b", ";", "≠", "←", "ü"]
    assert [words.in_symbols(t) for t in ("+[->+<]", "x = a + b", "«Да», — 他这样说了。", "")] == [True, False, False, False]
    assert [words.with_symbols(t) for t in ("x = a + b", "f(a) → g(b)", SENTENCES["English"], SENTENCES["Chinese"])] == [
        True,
        True,
        False,
        False,
    ]


FEW_LETTERS = {
    "DNA": "ACGT",
    "bits": "01",
    "digits": "0123456789",
    "brainfuck": "+-<>[].,",
    "emoji": "😀😡👍👎🎉🔥💧🌍",
    "morse": ".- ",
    "braille": "⠁⠃⠉⠙⠑⠋⠛⠓",
    "spaced bits": ["0 ", "1 "],
    "arrows": "←↑→↓",
    "hexagrams": "䷀䷁䷂䷃",
    "protein": "ACDEFGHIKLMNPQRSTVWY",
    "brackets": "(.)",
}


def different(name: str, rng: random.Random, size: int) -> str:
    alphabet = FEW_LETTERS[name]
    return "".join(rng.choice(alphabet) for _ in range(size))


@pytest.mark.parametrize("size", [60, 1_500])
@pytest.mark.parametrize("kind", FEW_LETTERS)
def test_texts_of_few_letters_are_different_texts_and_their_near_copies_are_not(kind: str, size: int) -> None:
    rng = random.Random(5)
    texts = [different(kind, rng, size) for _ in range(8)]
    texts += [t[: size // 2] + t[size // 2 + 2 :] for t in texts] if size > 60 else []
    group = near_duplicates.groups(near_duplicates.signatures(texts), texts, 0.8)
    assert len(set(group.tolist())) == 8
    assert size == 60 or (group[:8] == group[8:]).all()


def test_lines_of_a_sequence_are_one_sequence() -> None:
    rng = random.Random(2)
    one = different("DNA", rng, 3_000)
    folded = "\n".join(one[i : i + 60] for i in range(0, 3_000, 60))
    assert near_duplicates.jaccard(near_duplicates.shingles(one), near_duplicates.shingles(folded)) > 0.9


def test_code_that_differs_in_operators_is_kept_and_prose_with_other_commas_is_not() -> None:
    pairs = [("+", "-"), ("*", "/"), ("<<", ">>"), ("==", "!="), ("&&", "||"), ("->", ".")]
    programs = [f"y = f(a {op} b)\nz = (c {op} d) % e\nreturn y {op} z\n" for pair in pairs for op in pair]
    group = near_duplicates.groups(near_duplicates.signatures(programs), programs, 0.8)
    assert len(set(group.tolist())) == len(programs)
    prose = [SENTENCES["English"], SENTENCES["English"].replace(",", " –").replace(".", "!")]
    assert near_duplicates.similarity(*prose) == 1


def test_texts_with_nothing_to_compare_are_like_no_other() -> None:
    empty = ["\u200b", "\u00ad\u200d", " "]
    assert [near_duplicates.shingles(t) for t in empty] == [[], [], []]
    assert len(set(near_duplicates.groups(near_duplicates.signatures(empty), empty, 0.8).tolist())) == 3
    assert near_duplicates.jaccard(near_duplicates.shingles("a" * 3_000), near_duplicates.shingles("a" * 4_000)) < 0.8


def test_texts_of_fewer_words_than_a_run_are_alike_when_they_are_equal() -> None:
    for text, other in pairwise(["two words", "two words more", "短い", "短い文", "x", "y"]):
        assert near_duplicates.jaccard(near_duplicates.shingles(text), near_duplicates.shingles(text.upper())) == 1
        assert near_duplicates.jaccard(near_duplicates.shingles(text), near_duplicates.shingles(other)) == 0


@pytest.mark.parametrize("text", ["a", "é", "語", "+-", "a\u0301", "ab語", " 語", "\u200b"])
def test_long_strings_take_time_in_proportion(text: str) -> None:
    begun = time.process_time()
    words.words(text * 50_000)
    assert time.process_time() - begun < limit(3)


@pytest.mark.parametrize(("symbols", "pattern"), [(False, r"\w+|[¦©®°]"), (True, r"\w+|[^\w\s\x00-\x1f\x7f-\x9f]")])
def test_words_of_latin_text_are_those_of_a_regular_expression(symbols: bool, pattern: str) -> None:
    rng = random.Random(0)
    letters = "aZ09_ \t\n\x00\x1c\x7f.,;#$ \xa0©°¦«»±éßłΩж–—“”…€"
    for _ in range(500):
        text = "".join(rng.choices(letters, k=40))
        assert words.words(text, symbols) == re.findall(pattern, words.normal(text))


def test_kinds_of_what_stands_in_a_text() -> None:
    text = 'Born in 1908, Ivo lives near Lake Bled. "He paints 3rd-rate boats."\nZoe: no.'
    marks = {"number": "9", "capitalized": "N", "other words": "w", "form": "-"}
    shown = "".join(marks[words.KINDS[kind]] for kind in words.kinds(text))
    expected = text
    for name in ("Ivo", "Lake", "Bled"):
        expected = expected.replace(name, "N" * len(name))
    for number in ("1908", "3rd"):
        expected = expected.replace(number, "9" * len(number))
    for word in ("Born", "in", "lives", "near", "He", "paints", "rate", "boats", "Zoe", "no"):
        expected = re.sub(rf"\b{word}\b", "w" * len(word), expected)
    assert shown == re.sub(r"[^9Nw]", "-", expected)


@pytest.mark.parametrize("text", ["", "東京は1908年。", "العدد ١٢", "ὁ Σωκράτης", "\U0001f600 a"])
def test_kinds_of_any_script(text: str) -> None:
    kinds = words.kinds(text)
    assert len(kinds) == len(text)
    for character, kind in zip(text, kinds, strict=True):
        assert (words.KINDS[kind] == "form") == (not character.isalnum())


def test_kinds_of_long_gaps_take_time_in_proportion() -> None:
    begun = time.process_time()
    words.kinds("End.\n" + "\n" * 50_000 + "- next" + " " * 50_000 + "- then")
    assert time.process_time() - begun < limit(1)


def test_what_ends_a_sentence_is_what_a_regular_expression_says() -> None:
    pattern = regex.compile(r"[\n\p{STerm}:;][\s\p{Ps}\p{Pi}\"']*$")
    rng = random.Random(0)
    capitalized, other = (words.KINDS.index(name) for name in ("capitalized", "other words"))
    for _ in range(2_000):
        between = "".join(rng.choices(" \n\t.!?:;,-([«“\"')]。\u1362", k=rng.randrange(1, 6)))
        kind = words.kinds(f"a{between}Name")[-1]
        assert kind == (other if pattern.search(between) else capitalized), repr(between)
