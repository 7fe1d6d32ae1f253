// CTC forced alignment: the best path of a given label sequence through an emission, and its full forward sum.
//
// The states of L labels are L + 1 blanks and L labels in turn. A row of scores keeps the two kinds apart, so
// that every loop below runs over neighbours in memory and becomes vector code:
//     blank[0..L]          state 2i
//     label[1..L]          state 2i - 1; label[0] stands for the state before the first and is never reached
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <thread>
#include <vector>

// The same code for the baseline and for AVX2, chosen when the module is loaded. No contraction, so that both
// give the same numbers.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define W2V_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define W2V_CLONES
#endif

namespace w2v {
namespace forced {

namespace nb = nanobind;

using Emission = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Labels = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Path = nb::ndarray<std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Losses = nb::ndarray<double, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A label of probability zero may still be the only way through: it scores this, and a state that cannot be
// reached at all scores minus infinity.
constexpr float kFloor = -1e30f;
constexpr double kUnreached = -1e300;
// Scores of all frames are kept up to this many; beyond it those of every sqrt(frames)-th, to compute again.
constexpr std::size_t kWholeCells = std::size_t{1} << 18;

template <class Real>
W2V_CLONES void step_best(const Real* __restrict blank, const Real* __restrict label, const Real* __restrict skip,
                          const Real* __restrict scores, Real blank_score, std::ptrdiff_t begin,
                          std::ptrdiff_t end_blank, std::ptrdiff_t end_label, Real* __restrict to_blank,
                          Real* __restrict to_label) {
    for (std::ptrdiff_t i = begin; i < end_blank; ++i) {
        to_blank[i] = (label[i] > blank[i] ? label[i] : blank[i]) + blank_score;
    }
    for (std::ptrdiff_t i = begin; i < end_label; ++i) {
        const Real stay_or_enter = blank[i] > label[i + 1] ? blank[i] : label[i + 1];
        const Real skipped = label[i] + skip[i];
        to_label[i + 1] = (skipped > stay_or_enter ? skipped : stay_or_enter) + scores[i];
    }
}

// e to the power of x for x <= 0, within 1e-11; 1e-304 where it is below that.
inline __attribute__((always_inline)) double fast_exp(double x) {
    constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to a whole number
    x = x > -700.0 ? x : -700.0;
    double whole = x * 1.4426950408889634 + kShift;
    std::int64_t bits;
    std::memcpy(&bits, &whole, sizeof bits);
    whole -= kShift;
    const double r = (x - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10;
    double sum = 1.0 / 362880.0;
    sum = sum * r + 1.0 / 40320.0;
    sum = sum * r + 1.0 / 5040.0;
    sum = sum * r + 1.0 / 720.0;
    sum = sum * r + 1.0 / 120.0;
    sum = sum * r + 1.0 / 24.0;
    sum = sum * r + 1.0 / 6.0;
    sum = sum * r + 0.5;
    sum = sum * r + 1.0;
    sum = sum * r + 1.0;
    const std::uint64_t power = (static_cast<std::uint64_t>(bits) << 52) + 0x3ff0000000000000u;
    double scale;
    std::memcpy(&scale, &power, sizeof scale);
    return sum * scale;
}

// The natural logarithm of z from 1 to 3, within 1e-10.
inline __attribute__((always_inline)) double fast_log(double z) {
    constexpr double kRoot3 = 1.7320508075688772;
    const double s = (z - kRoot3) / (z + kRoot3);
    const double q = s * s;
    double sum = 1.0 / 15.0;
    sum = sum * q + 1.0 / 13.0;
    sum = sum * q + 1.0 / 11.0;
    sum = sum * q + 1.0 / 9.0;
    sum = sum * q + 1.0 / 7.0;
    sum = sum * q + 1.0 / 5.0;
    sum = sum * q + 1.0 / 3.0;
    sum = sum * q + 1.0;
    return 2.0 * s * sum + 0.5493061443340549;
}

W2V_CLONES inline void step_sum(const double* __restrict blank, const double* __restrict label,
                                const double* __restrict skip, const double* __restrict scores, double blank_score,
                                std::ptrdiff_t begin, std::ptrdiff_t end_blank, std::ptrdiff_t end_label,
                                double* __restrict to_blank, double* __restrict to_label) {
    // The lesser of two is written as the greater minus their distance: two choices by one comparison would
    // become a branch, and the loop no vector code.
    for (std::ptrdiff_t i = begin; i < end_blank; ++i) {
        const double top = label[i] > blank[i] ? label[i] : blank[i];
        to_blank[i] = top + fast_log(1.0 + fast_exp(-std::fabs(label[i] - blank[i]))) + blank_score;
    }
    for (std::ptrdiff_t i = begin; i < end_label; ++i) {
        const double stay = label[i + 1], enter = blank[i], skipped = label[i] + skip[i];
        const double either = enter > stay ? enter : stay;
        const double top = skipped > either ? skipped : either;
        const double third = either - std::fabs(enter - stay) - top, second = -std::fabs(skipped - either);
        to_label[i + 1] = top + fast_log(1.0 + fast_exp(second) + fast_exp(third)) + scores[i];
    }
}

// One text against one emission. Frames are rows of `columns` natural log-probabilities, none of them NaN.
template <class Real>
class Lattice {
 public:
    Lattice(const float* emission, std::ptrdiff_t num_frames, std::ptrdiff_t columns, const std::int32_t* labels,
            std::ptrdiff_t num_labels, std::ptrdiff_t blank, Real unreached)
        : emission_(emission), labels_(labels), T_(num_frames), V_(columns), L_(num_labels), blank_(blank),
          unreached_(unreached), scores_(static_cast<std::size_t>(num_labels)),
          skip_(static_cast<std::size_t>(num_labels)) {
        for (std::ptrdiff_t i = 0; i < L_; ++i) {
            skip_[i] = i > 0 && labels[i] != labels[i - 1] ? Real(0) : unreached;
        }
    }

    std::size_t width() const { return 2 * static_cast<std::size_t>(L_) + 2; }

    // The row of the first frame, in which a path begins with the first blank or the first label.
    void begin(Real* row) {
        std::fill(row, row + width(), unreached_);
        blank(row)[0] = floored(emission_[blank_]);
        if (L_ > 0) label(row)[1] = floored(emission_[labels_[0]]);
    }

    // The row of frame t from that of the frame before it; `Step` is one of the two above.
    template <class Step>
    void advance(std::ptrdiff_t t, const Real* from, Real* to, Step step) {
        const float* frame = emission_ + t * V_;
        // What no path has reached by now, and what cannot reach the end any more, is left out.
        const std::ptrdiff_t first = std::max<std::ptrdiff_t>(0, L_ - T_ + t);
        const std::ptrdiff_t end_blank = std::min(L_, t) + 1, end_label = std::min(L_ - 1, t) + 1;
        for (std::ptrdiff_t i = first; i < end_label; ++i) scores_[i] = floored(frame[labels_[i]]);
        step(blank(from), label(from), skip_.data(), scores_.data(), floored(frame[blank_]), first, end_blank,
             end_label, blank(to), label(to));
        label(to)[0] = unreached_;
        // The next frame reads one further; the row may hold what an earlier use left there.
        if (end_blank <= L_) blank(to)[end_blank] = unreached_;
        if (end_label < L_) label(to)[end_label + 1] = unreached_;
    }

    Real last_blank(const Real* row) const { return blank(row)[L_]; }
    Real last_label(const Real* row) const { return L_ > 0 ? label(row)[L_] : unreached_; }

    // The state before `state` on the best path, given the row of the frame before. Of equals the earlier
    // state is left last, as in torchaudio.
    std::ptrdiff_t before(const Real* row, std::ptrdiff_t state) const {
        const std::ptrdiff_t i = state / 2;
        if (state % 2 == 0) return label(row)[i] > blank(row)[i] ? state - 1 : state;
        const Real stay = label(row)[i + 1], enter = blank(row)[i], skipped = label(row)[i] + skip_[i];
        if (skipped > enter && skipped > stay) return state - 2;
        return enter > stay ? state - 1 : state;
    }

 private:
    Real* blank(Real* row) const { return row; }
    Real* label(Real* row) const { return row + L_ + 1; }
    const Real* blank(const Real* row) const { return row; }
    const Real* label(const Real* row) const { return row + L_ + 1; }
    static Real floored(float score) { return score > kFloor ? score : kFloor; }

    const float* emission_;
    const std::int32_t* labels_;
    std::ptrdiff_t T_, V_, L_, blank_;
    Real unreached_;
    std::vector<Real> scores_, skip_;
};

// Writes the best path's state in each frame: 2i + 1 where label i is, an even number where a blank is.
inline void best_path(const float* emission, std::ptrdiff_t num_frames, std::ptrdiff_t columns,
                      const std::int32_t* labels, std::ptrdiff_t num_labels, std::ptrdiff_t blank,
                      std::int32_t* path) {
    Lattice<float> lattice(emission, num_frames, columns, labels, num_labels, blank,
                           -std::numeric_limits<float>::infinity());
    const auto step = [](auto... arguments) { step_best<float>(arguments...); };
    const std::size_t width = lattice.width();
    std::ptrdiff_t span = num_frames;
    if (width * static_cast<std::size_t>(num_frames) > kWholeCells) {
        span = static_cast<std::ptrdiff_t>(std::ceil(std::sqrt(static_cast<double>(num_frames))));
    }
    const std::ptrdiff_t num_spans = (num_frames + span - 1) / span;
    std::vector<float> starts(width * static_cast<std::size_t>(num_spans));  // the first row of each span
    std::vector<float> rows(width * static_cast<std::size_t>(span));
    lattice.begin(starts.data());
    for (std::ptrdiff_t k = 1; k < num_spans; ++k) {
        const float* from = starts.data() + width * (k - 1);
        for (std::ptrdiff_t t = (k - 1) * span + 1; t <= k * span; ++t) {
            // The rows in between are scratch: two of them in turn.
            float* to = t == k * span ? starts.data() + width * k : rows.data() + width * (t % 2);
            lattice.advance(t, from, to, step);
            from = to;
        }
    }
    std::ptrdiff_t state = 0;
    for (std::ptrdiff_t k = num_spans - 1; k >= 0; --k) {
        const std::ptrdiff_t begin = k * span, end = std::min(num_frames, begin + span);
        std::copy_n(starts.data() + width * k, width, rows.data());
        for (std::ptrdiff_t t = begin + 1; t < end; ++t) {
            lattice.advance(t, rows.data() + width * (t - 1 - begin), rows.data() + width * (t - begin), step);
        }
        const float* last = rows.data() + width * (end - 1 - begin);
        if (end == num_frames) {
            state = lattice.last_blank(last) > lattice.last_label(last) ? 2 * num_labels : 2 * num_labels - 1;
        } else {
            state = lattice.before(last, state);
        }
        for (std::ptrdiff_t t = end - 1; t >= begin; --t) {
            path[t] = static_cast<std::int32_t>(state);
            if (t > begin) state = lattice.before(rows.data() + width * (t - 1 - begin), state);
        }
    }
}

// The negative logarithm of the probability of the labels, over all paths; infinite where it is zero.
inline double full_loss(const float* emission, std::ptrdiff_t num_frames, std::ptrdiff_t columns,
                        const std::int32_t* labels, std::ptrdiff_t num_labels, std::ptrdiff_t blank) {
    Lattice<double> lattice(emission, num_frames, columns, labels, num_labels, blank, kUnreached);
    const auto step = [](auto... arguments) { step_sum(arguments...); };
    std::vector<double> from(lattice.width()), to(lattice.width(), kUnreached);
    lattice.begin(from.data());
    for (std::ptrdiff_t t = 1; t < num_frames; ++t) {
        lattice.advance(t, from.data(), to.data(), step);
        from.swap(to);
    }
    const double a = lattice.last_blank(from.data()), b = lattice.last_label(from.data());
    const double top = std::max(a, b);
    const double total = top + std::log1p(std::exp(std::min(a, b) - top));
    return total > 0.1 * double{kFloor} ? -total : std::numeric_limits<double>::infinity();
}

inline void check(const Emission& emission, const Labels& labels, const Path& path, std::int64_t blank) {
    const auto columns = static_cast<std::int64_t>(emission.shape(1));
    auto bad = [&](std::int64_t index) { return index < 0 || index >= columns; };
    std::size_t needed = labels.shape(0);
    for (std::size_t i = 0; i < labels.shape(0); ++i) {
        if (bad(labels(i)) || labels(i) == blank) throw std::invalid_argument("a label is no column, or the blank");
        needed += i > 0 && labels(i) == labels(i - 1);
    }
    if (bad(blank)) throw std::invalid_argument("the blank is no column");
    if (emission.shape(0) == 0 || emission.shape(0) < needed) throw std::invalid_argument("too few frames");
    if (path.shape(0) != emission.shape(0)) throw std::invalid_argument("a path has another length than its emission");
}

// Aligns item after item, on up to `num_threads` threads, into `paths` and, if asked for, `losses`.
inline void align(const std::vector<Emission>& emissions, const std::vector<Labels>& labels, std::int64_t blank,
                  const std::vector<Path>& paths, const Losses& losses, bool with_loss,
                  int num_threads) {
    const std::size_t size = emissions.size();
    if (labels.size() != size || paths.size() != size || losses.shape(0) != size) {
        throw std::invalid_argument("emissions, labels, paths and losses differ in number");
    }
    for (std::size_t i = 0; i < size; ++i) check(emissions[i], labels[i], paths[i], blank);
    nb::gil_scoped_release release;
    std::atomic<std::size_t> next{0};
    std::atomic<bool> failed{false};
    std::exception_ptr failure;
    auto work = [&] {
        try {
            for (std::size_t i; (i = next++) < size;) {
                const auto frames = static_cast<std::ptrdiff_t>(emissions[i].shape(0));
                const auto columns = static_cast<std::ptrdiff_t>(emissions[i].shape(1));
                const auto length = static_cast<std::ptrdiff_t>(labels[i].shape(0));
                const float* data = emissions[i].data();
                best_path(data, frames, columns, labels[i].data(), length, blank, paths[i].data());
                if (with_loss) losses.data()[i] = full_loss(data, frames, columns, labels[i].data(), length, blank);
            }
        } catch (...) {  // bad_alloc is the only one there is
            if (!failed.exchange(true)) failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    const std::size_t more = std::min(size, static_cast<std::size_t>(std::max(1, num_threads)));
    for (std::size_t i = 1; i < more; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
}

}  // namespace forced

inline void bind_align(nanobind::module_& module) {
    using namespace nanobind::literals;
    module.def("align", &forced::align, "emissions"_a, "labels"_a, "blank"_a, "paths"_a, "losses"_a, "with_loss"_a,
               "num_threads"_a, "Best paths of labels through emissions, as states, and the full losses, into paths and losses.");
}

}  // namespace w2v
