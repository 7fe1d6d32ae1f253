// The native part of w2v_ray.text: CTC prefix beam search. The n-gram model is in _ngram.hpp.

#include <nanobind/nanobind.h>

#include "_align.hpp"
#include "_ngram.hpp"

namespace nb = nanobind;

NB_MODULE(_beam, module) {
    module.doc() = "CTC beam search and n-gram models; use w2v_ray.text.";
    w2v::bind_align(module);
    w2v::bind_ngram(module);
}
