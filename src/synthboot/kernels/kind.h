// The loops for one kind of processor, PROCESSOR. Types and inner functions are in a namespace of
// its name: a function of two kinds must never be taken for one by the linker.
namespace PROCESSOR {
#include "vectors.h"
#include "decoding.h"
#include "overlap.h"
#include "topk.h"
#include "training.h"
}  // namespace PROCESSOR
#undef LANES
#undef PROCESSOR
