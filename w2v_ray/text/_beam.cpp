// The native part of w2v_ray.text: CTC prefix beam search. The n-gram model is in _ngram.hpp.
//
// The search computes what pyctcdecode 0.5 computes, to the order in which equal scores are kept. It is fast
// because a prefix is a node of a trie, (text, partial word), made once: its language model score is worked out
// once, a beam is a node and the label of its last frame, and equal beams meet in a stamp on that pair. What pruning
// is bound to drop never becomes a candidate, and where a prefix can be reached from one prefix only it gets a node
// when its beam is kept. All memory is taken from vectors that the next utterance finds with their capacity, and is
// written where it stays: a copy of fields just written would wait for them.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "_align.hpp"
#include "_ngram.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace w2v {
namespace {

using Index = std::uint32_t;
constexpr Index kNone = ~Index(0);
constexpr Index kBlank = kNone - 1;  // as the label of a beam's last frame
constexpr Index kRoot = 0;

const double kLog10 = 1.0 / std::log10(std::exp(1.0));  // from log10, as n-gram models have it, to natural
const double kFloorLogp = std::log(1e-15);
constexpr double kUsualWordLength = 6;  // characters; unknown partial words beyond it cost more

// --- numbers ---------------------------------------------------------------------------------------------------

// Round a float to the nearest half, ties to even; it stays a float.
inline float round_half(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const std::uint32_t sign = bits & 0x80000000u;
    bits &= 0x7fffffffu;
    float size;
    std::memcpy(&size, &bits, 4);
    if (!(size < 65520.0f)) {
        size = size == size ? std::numeric_limits<float>::infinity() : size;
    } else if (size < 6.103515625e-05f) {  // subnormal halves are multiples of 2^-24, as floats in [0.5, 1) are
        size = (size + 0.5f) - 0.5f;
    } else {
        bits += 0xfffu + (bits >> 13 & 1u);
        bits &= ~0x1fffu;
        std::memcpy(&size, &bits, 4);
    }
    std::memcpy(&bits, &size, 4);
    bits |= sign;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = std::uint32_t(half & 0x8000u) << 16;
    const std::uint32_t exponent = half >> 10 & 31u, mantissa = half & 0x3ffu;
    std::uint32_t bits;
    if (exponent == 31) {
        bits = 0x7f800000u | mantissa << 13;
    } else if (exponent) {
        bits = (exponent + 112) << 23 | mantissa << 13;
    } else {
        const float size = float(mantissa) * 5.9604644775390625e-08f;
        std::memcpy(&bits, &size, 4);
    }
    bits |= sign;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// What one addition of scores rounds to. Log-probabilities that come from logits are summed in float64;
// probabilities are taken for what they are and their logarithms summed in their own type.
struct Float64 {
    static double round(double x) { return x; }
    static constexpr double kError = 1e-12;
};
struct Float32 {
    static double round(double x) { return static_cast<float>(x); }
    static constexpr double kError = 1e-6;
};
struct Float16 {
    static double round(double x) { return round_half(static_cast<float>(x)); }
    static constexpr double kError = 1e-2;
};

template <class Round>
inline double add(double a, double b) {
    return Round::round(a + Round::round(b));
}

template <class Round>
inline double log_sum(double a, double b) {
    if (!(a >= b)) std::swap(a, b);
    const double gap = Round::round(b - a);
    if (gap < -40.0) return a;  // adds nothing to a double
    return add<Round>(a, std::log(1.0 + std::exp(gap)));
}

// exp(x) for x <= 0 to about one unit in the last place, written so that a compiler turns loops of it into SIMD.
inline float exp_float(float x) {
    x = x < -87.0f ? -87.0f : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    const float shifted = x * 1.44269504088896341f + magic;
    std::int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    const float n = shifted - magic;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    bits = static_cast<std::int32_t>((static_cast<std::uint32_t>(bits) + 127u - 0x4B400000u) << 23);
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// The sum in the order in which NumPy adds a row.
template <class T>
T row_sum(const T *row, std::size_t size) {
    if (size < 8) {
        T sum = 0;
        for (std::size_t i = 0; i < size; ++i) sum += row[i];
        return sum;
    }
    if (size <= 128) {
        T part[8];
        for (int k = 0; k < 8; ++k) part[k] = row[k];
        std::size_t i = 8;
        for (; i + 8 <= size; i += 8) {
            for (int k = 0; k < 8; ++k) part[k] += row[i + k];
        }
        T sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
        for (; i < size; ++i) sum += row[i];
        return sum;
    }
    std::size_t left = size / 2;
    left -= left % 8;
    return row_sum(row, left) + row_sum(row + left, size - left);
}

// --- the labels ------------------------------------------------------------------------------------------------

std::size_t count_chars(std::string_view utf8) {
    return static_cast<std::size_t>(
        std::count_if(utf8.begin(), utf8.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// The whitespace at `at` as str.split() sees it: its length in bytes, or 0.
std::size_t space_at(std::string_view utf8, std::size_t at) {
    const auto byte = [&](std::size_t i) { return at + i < utf8.size() ? static_cast<unsigned char>(utf8[at + i]) : 0u; };
    const unsigned a = byte(0);
    if (a < 0x80) return (a >= 9 && a <= 13) || (a >= 28 && a <= 32) ? 1 : 0;
    if (a == 0xC2) return byte(1) == 0x85 || byte(1) == 0xA0 ? 2 : 0;
    if (a < 0xE1 || a > 0xE3) return 0;
    const unsigned code = (a & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
    return code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
                   code == 0x202F || code == 0x205F || code == 0x3000
               ? 3
               : 0;
}

template <class F>
void for_each_split(std::string_view text, F f) {
    std::size_t from = 0, at = 0;
    while (at < text.size()) {
        if (const std::size_t space = space_at(text, at)) {
            if (at > from) f(text.substr(from, at - from));
            from = at += space;
        } else {
            ++at;
        }
    }
    if (at > from) f(text.substr(from, at - from));
}

bool has_space(std::string_view text) {
    for (std::size_t at = 0; at < text.size(); ++at) {
        if (space_at(text, at)) return true;
    }
    return false;
}

struct Label {
    std::string text;
    std::string clean;  // what a word that this label opens begins with
    Index same;         // the first label of equal text
    bool blank, space, opens, closes;
};

struct Labels {
    std::vector<Label> all;
    bool bpe = false;
    bool ambiguous = false;  // some label holds a space, so that one text has several ways to be words
    bool can_force = false;  // some label ends in a boundary, so that any label behind it may open a word
    bool one_source = true;  // a prefix that ends in a label is reached from one prefix only, by one label
    bool one_blank = true;
    bool simple = false;     // each prefix has one way to be spelled: labels are different characters, of words
    // Sets of labels, where there are less than 64: those of one byte by it, and the others.
    std::array<std::uint64_t, 256> of_byte{};
    std::uint64_t of_bytes = 0;

    Labels(const std::vector<std::string> &texts, bool bpe) : bpe(bpe) {
        const std::string_view boundary = "\xE2\x96\x81";  // U+2581
        std::unordered_map<std::string, Index> first;
        for (const std::string &text : texts) {
            Label label{text, text, first.try_emplace(text, Index(all.size())).first->second, text.empty(),
                        !bpe && text == " ", false, false};
            if (bpe && !label.blank) {
                label.opens = text.compare(0, 3, boundary) == 0;
                label.closes = text.size() >= 3 && text.compare(text.size() - 3, 3, boundary) == 0;
                if (label.opens) label.clean.erase(0, 3);
                if (label.closes && !label.clean.empty()) label.clean.erase(label.clean.size() - 3);
            }
            ambiguous |= !label.space && text.find(' ') != std::string::npos;
            can_force |= label.closes;
            // After a lone boundary there may be an empty word, to which labels are added or opened by force.
            one_source &= !(label.opens && label.clean.empty());
            if (label.same != Index(all.size())) (label.blank ? one_blank : one_source) = false;
            all.push_back(std::move(label));
        }
        one_source &= !ambiguous;
        simple = !bpe && !ambiguous && std::all_of(all.begin(), all.end(), [&](const Label &label) {
            return label.blank || (count_chars(label.text) == 1 && label.same == Index(&label - all.data()) &&
                                   (label.space || !has_space(label.text)));
        });
        for (Index i = 0; i < all.size() && all.size() < 64; ++i) {
            const bool is_byte = all[i].text.size() == 1;
            (is_byte ? of_byte[static_cast<unsigned char>(all[i].text[0])] : of_bytes) |= std::uint64_t(1) << i;
        }
    }
};

// --- tables ----------------------------------------------------------------------------------------------------

// From 64-bit keys to indices; emptied in constant time. It has `room` slots for each key.
template <std::size_t room>
class Table {
 public:
    Table() : slots_(64) {}
    void clear() {
        if (++era_ == 0) {
            std::fill(slots_.begin(), slots_.end(), Slot{});
            era_ = 1;
        }
        used_ = 0;
    }
    // The place of the key's value, kNone if it was not there; valid until the next call.
    Index &at(std::uint64_t key) {
        if ((used_ + 1) * room > slots_.size()) grow();
        Slot &slot = slots_[place(key)];
        if (slot.era != era_) {
            slot = {key, kNone, era_};
            ++used_;
        }
        return slot.value;
    }
    Index find(std::uint64_t key) const {
        const Slot &slot = slots_[place(key)];
        return slot.era == era_ ? slot.value : kNone;
    }
    std::size_t size() const { return used_; }

 private:
    struct Slot {
        std::uint64_t key = 0;
        Index value = kNone;
        std::uint32_t era = 0;
    };
    std::size_t place(std::uint64_t key) const {
        const std::size_t mask = slots_.size() - 1;
        std::size_t at = key * 0x9E3779B97F4A7C15ull >> shift_;
        while (slots_[at].era == era_ && slots_[at].key != key) at = (at + 1) & mask;
        return at;
    }
    void grow() {
        std::vector<Slot> old(slots_.size() * 2);
        old.swap(slots_);
        --shift_;
        for (const Slot &slot : old) {
            if (slot.era == era_) slots_[place(slot.key)] = slot;
        }
    }
    std::vector<Slot> slots_;
    std::size_t used_ = 0;
    std::uint32_t era_ = 1;
    unsigned shift_ = 64 - 6;  // the top bits of a product are those that all of a key decides
};
using KeyTable = Table<2>;

// Words as a trie of bytes, which serves characters: a prefix that ends with a character ends with a byte. Six
// bytes a node, in the order of their depth, so that the children of a node lie side by side.
class Trie {
 public:
    // The words stay where they are until this returns.
    explicit Trie(std::vector<std::string_view> words) {
        std::sort(words.begin(), words.end());
        words.erase(std::unique(words.begin(), words.end()), words.end());
        num_words_ = words.size();
        struct Range {
            std::size_t from, to, depth;
        };
        std::vector<Range> ranges{{0, words.size(), 0}};
        bytes_.push_back(0);
        for (std::size_t node = 0; node < ranges.size(); ++node) {
            auto [from, to, depth] = ranges[node];
            const bool is_word = from < to && words[from].size() == depth;
            is_word_.push_back(is_word);
            first_.push_back(static_cast<Index>(ranges.size()));
            Index shortest = kNone;
            for (std::size_t i = from; i < to; ++i) {
                shortest = std::min(shortest, static_cast<Index>(count_chars(words[i])));
            }
            if (words.size() <= kFew) shortest_.push_back(shortest);
            for (from += is_word; from < to;) {
                const char byte = words[from][depth];
                std::size_t next = from + 1;
                while (next < to && words[next][depth] == byte) ++next;
                ranges.push_back({from, next, depth + 1});
                bytes_.push_back(static_cast<unsigned char>(byte));
                from = next;
            }
        }
        first_.push_back(static_cast<Index>(ranges.size()));
    }
    // The node after `bytes`, from `node`; kNone where no word goes on so.
    Index step(Index node, std::string_view bytes) const {
        for (const unsigned char byte : bytes) {
            if (node == kNone) break;
            const auto from = bytes_.begin() + first_[node], to = bytes_.begin() + first_[node + 1];
            const auto child = std::find(from, to, byte);
            node = child == to ? kNone : static_cast<Index>(child - bytes_.begin());
        }
        return node;
    }
    template <class F>
    void for_each_byte(Index node, F f) const {  // that a word goes on with
        for (Index child = first_[node]; child < first_[node + 1]; ++child) f(bytes_[child]);
    }
    bool is_word(Index node) const { return node != kNone && is_word_[node]; }
    // Characters of the shortest word from here on; of tries with few words.
    Index shortest(Index node) const { return shortest_.at(node); }
    bool has_shortest() const { return num_words_ <= kFew; }
    std::size_t num_words() const { return num_words_; }
    template <class F>
    void for_each_word(F f) const {  // in the order of their bytes, which is that of their characters
        std::vector<std::pair<Index, std::string>> stack{{kRoot, ""}};
        while (!stack.empty()) {
            const auto [node, text] = std::move(stack.back());
            stack.pop_back();
            if (is_word_[node]) f(text);
            for (Index child = first_[node + 1]; child-- > first_[node];) {
                stack.emplace_back(child, text + static_cast<char>(bytes_[child]));
            }
        }
    }

 private:
    static constexpr std::size_t kFew = 100000;
    std::vector<unsigned char> bytes_;  // the last of each node
    std::vector<Index> first_;          // the first child of each node; its last is before the next node's first
    std::vector<bool> is_word_;
    std::vector<Index> shortest_;
    std::size_t num_words_ = 0;
};

// --- language models -------------------------------------------------------------------------------------------

// What the search asks of an n-gram model.
class Scorer {
 public:
    using State = std::uint64_t;
    struct Word {
        std::uint32_t id = 0;
        bool known = false;
    };
    struct Scored {
        double log10_prob;
        State next;
    };
    virtual ~Scorer() = default;
    virtual Word word(std::string_view utf8) = 0;
    virtual Scored score(State state, std::uint32_t word) = 0;
    virtual std::uint32_t end_word() = 0;
    virtual State begin_state() = 0;
    virtual State null_state() = 0;
    // No word after any state has a higher log10 probability.
    virtual double largest_log10_prob() const { return std::numeric_limits<double>::infinity(); }
};

class NgramScorer final : public Scorer {
 public:
    explicit NgramScorer(const NgramModel &model) : model_(model) {}
    Word word(std::string_view utf8) override {
        const NgramModel::Word id = model_.word(utf8);
        return {id, id != 0};
    }
    Scored score(State state, std::uint32_t word) override {
        const NgramModel::Scored scored = model_.score(state, word);
        return {scored.log10_prob, scored.next};
    }
    std::uint32_t end_word() override { return model_.end_of_sentence(); }
    State begin_state() override { return model_.begin_state(); }
    State null_state() override { return model_.null_state(); }
    double largest_log10_prob() const override { return model_.largest_log10_prob(); }

 private:
    const NgramModel &model_;
};

// A kenlm.Model, asked through Python once for every (state, word). Equal states of it have one number.
class KenlmScorer final : public Scorer {
 public:
    // The GIL is held here and where this is destroyed, and not held where it is asked.
    KenlmScorer(nb::object model, nb::object state_type) : model_(std::move(model)), state_type_(std::move(state_type)) {
        ask_ = model_.attr("BaseScore");
    }
    bool serves(nb::handle model) const { return model_.is(model); }
    void forget_if_large() {
        if (known_.size() + states_.size() < (1u << 22)) return;
        known_.clear();
        scored_.clear();
        numbers_ = nb::dict();
        states_.clear();
    }
    nb::object state(State number) const { return states_.at(number); }
    State number(nb::object state) {
        const nb::object key = nb::borrow(state);
        if (PyObject *found = PyDict_GetItemWithError(numbers_.ptr(), key.ptr())) return PyLong_AsUnsignedLongLong(found);
        if (PyErr_Occurred()) throw nb::python_error();
        const State fresh = states_.size();
        numbers_[key] = nb::int_(fresh);
        states_.push_back(key);
        return fresh;
    }

    Word word(std::string_view utf8) override {
        const auto [place, is_new] = numbers_of_words_.try_emplace(std::string(utf8));
        if (is_new) {
            nb::gil_scoped_acquire gil;
            nb::str text(utf8.data(), utf8.size());
            const int known = PySequence_Contains(model_.ptr(), text.ptr());
            if (known < 0) throw nb::python_error();
            place->second = {std::uint32_t(words_.size()), known != 0};
            words_.push_back(std::move(text));
        }
        return place->second;
    }
    Scored score(State state, std::uint32_t word) override {
        const std::uint64_t key = state << 32 | word;
        const Index found = known_.find(key);
        if (found != kNone) return scored_[found];
        Scored scored;
        {
            nb::gil_scoped_acquire gil;
            nb::object next = state_type_();
            scored.log10_prob = nb::cast<double>(ask_(states_[state], words_[word], next));
            scored.next = number(std::move(next));
        }
        known_.at(key) = Index(scored_.size());
        scored_.push_back(scored);
        return scored;
    }
    std::uint32_t end_word() override { return word("</s>").id; }
    State begin_state() override { return written("BeginSentenceWrite"); }
    State null_state() override { return written("NullContextWrite"); }

 private:
    State written(const char *method) {
        nb::gil_scoped_acquire gil;
        nb::object state = state_type_();
        model_.attr(method)(state);
        return number(std::move(state));
    }
    nb::object model_, state_type_, ask_;
    nb::dict numbers_;
    std::vector<nb::object> states_;
    std::unordered_map<std::string, Word> numbers_of_words_;
    std::vector<nb::str> words_;
    KeyTable known_;
    std::vector<Scored> scored_;
};

// --- one frame's labels ----------------------------------------------------------------------------------------

// The order in which CPython walks through set(columns) | {best}, as pyctcdecode walks through a frame's labels.
class SetOrder {
 public:
    // `columns` ascend; the result replaces them.
    void operator()(std::vector<Index> &columns, Index best) {
        const bool is_in = std::binary_search(columns.begin(), columns.end(), best);
        if (columns.empty()) columns.push_back(best);
        if (is_in && columns.back() < 8) return;  // every table has at least 8 slots
        if (columns.size() == 1 && columns[0] == best) return;
        if (is_in && columns.size() <= 3 && are_apart(columns)) {  // each is in its own slot of 8
            std::sort(columns.begin(), columns.end(), [](Index a, Index b) { return (a & 7) < (b & 7); });
            return;
        }
        first_.reset(8);
        for (const Index column : columns) first_.insert(column);
        second_.reset(8);
        second_.merge(first_);
        single_.reset(8);
        single_.insert(best);
        second_.merge(single_);
        columns.clear();
        for (const Index column : second_.slots) {
            if (column != kNone) columns.push_back(column);
        }
    }

 private:
    static bool are_apart(const std::vector<Index> &columns) {
        unsigned taken = 0, meet = 0;
        for (const Index column : columns) {
            meet |= taken & 1u << (column & 7);
            taken |= 1u << (column & 7);
        }
        return meet == 0;
    }
    struct Table {
        std::vector<Index> slots;
        std::size_t used = 0;

        void reset(std::size_t size) {
            slots.assign(size, kNone);
            used = 0;
        }
        // The slot that holds the key or would take it: up to nine neighbours, then a jump.
        Index &slot(Index key) {
            const std::size_t mask = slots.size() - 1;
            std::size_t at = key & mask;
            for (std::size_t perturb = key;;) {
                const std::size_t reach = at + 9 <= mask ? 9 : 0;
                for (std::size_t i = at; i <= at + reach; ++i) {
                    if (slots[i] == kNone || slots[i] == key) return slots[i];
                }
                perturb >>= 5;
                at = (at * 5 + 1 + perturb) & mask;
            }
        }
        void resize(std::size_t least) {
            std::size_t size = 8;
            while (size <= least) size *= 2;
            std::vector<Index> old(size, kNone);
            old.swap(slots);
            for (const Index key : old) {
                if (key != kNone) slot(key) = key;
            }
        }
        void insert(Index key) {
            Index &place = slot(key);
            if (place == key) return;
            place = key;
            ++used;
            if (used * 5 >= (slots.size() - 1) * 3) resize(used > 50000 ? used * 2 : used * 4);
        }
        void merge(const Table &other) {
            if (other.used == 0) return;
            if ((used + other.used) * 5 >= (slots.size() - 1) * 3) resize((used + other.used) * 2);
            if (used == 0 && slots.size() == other.slots.size()) {
                slots = other.slots;
                used = other.used;
                return;
            }
            if (used == 0) {
                for (const Index key : other.slots) {
                    if (key != kNone) slot(key) = key;
                }
                used = other.used;
                return;
            }
            for (const Index key : other.slots) {
                if (key != kNone) insert(key);
            }
        }
    };
    Table first_, second_, single_;
};

enum class Dtype { f16, f32, f64 };

// One utterance: frames of logits or of probabilities, C-contiguous.
struct Emission {
    const void *data;
    std::size_t num_frames, num_labels;
    Dtype dtype;
    bool are_probabilities;
    bool are_log_probs;  // already, and clipped: of float64
};

struct Token {
    Index column;
    double logp;
};

class FrameError : public std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// Reads a frame: its labels that are likely enough, and the likeliest, in the order of the search.
class FrameReader {
 public:
    FrameReader(const Emission &emission, double least) : emission_(emission), least_(least) {
        if (emission.are_probabilities) {
            if (emission.dtype == Dtype::f32) least_ = static_cast<float>(least);
            if (emission.dtype == Dtype::f16) least_ = round_half(static_cast<float>(least));
        }
        // A float is above this where its clipped self is above `least`.
        const float inf = std::numeric_limits<float>::infinity();
        least_float_ = least <= kFloorLogp ? -inf : static_cast<float>(least);
        if (least_float_ < least && least > kFloorLogp) least_float_ = std::nextafter(least_float_, inf);
        logp_.resize(emission.num_labels);
        floats_.resize(emission.num_labels);
        doubles_.resize(emission.dtype == Dtype::f64 ? emission.num_labels : 0);
    }
    const std::vector<Token> &read(std::size_t frame) {
        const std::size_t size = emission_.num_labels, from = frame * size;
        switch (emission_.dtype) {
            case Dtype::f16: {
                const auto *halves = static_cast<const std::uint16_t *>(emission_.data) + from;
                for (std::size_t i = 0; i < size; ++i) floats_[i] = half_to_float(halves[i]);
                emission_.are_probabilities ? take_logs(floats_.data(), round_half) : soften_half(frame);
                break;
            }
            case Dtype::f32: {
                const auto *row = static_cast<const float *>(emission_.data) + from;
                if (!emission_.are_probabilities) return soften(row, frame);
                take_logs(row, [](float x) { return x; });
                break;
            }
            case Dtype::f64: {
                const auto *row = static_cast<const double *>(emission_.data) + from;
                if (emission_.are_log_probs) {
                    take_as_they_are(row, frame);
                } else {
                    emission_.are_probabilities ? take_logs(row, [](double x) { return x; }) : soften(row, frame);
                }
            }
        }
        Index best = 0;
        columns_.clear();
        for (Index i = 0; i < size; ++i) {
            if (logp_[i] > logp_[best]) best = i;
            if (logp_[i] >= least_) columns_.push_back(i);
        }
        order_(columns_, best);
        tokens_.clear();
        for (const Index column : columns_) tokens_.push_back({column, logp_[column]});
        return tokens_;
    }

 private:
    template <class T, class F>
    void take_logs(const T *row, F round) {
        const T least = round(static_cast<T>(1e-15));
        for (std::size_t i = 0; i < emission_.num_labels; ++i) {
            logp_[i] = round(std::log(std::min(std::max(row[i], least), T(1))));
        }
    }
    void take_as_they_are(const double *row, std::size_t frame) {
        std::copy(row, row + emission_.num_labels, logp_.begin());
        check(0.0, row_sum(row, emission_.num_labels), frame);
    }
    void check(double largest, double sum, std::size_t frame) const {
        if (sum == sum && std::isfinite(largest)) return;
        const double inf = std::numeric_limits<double>::infinity();
        const char *what = largest == inf ? "inf" : largest == -inf ? "nothing but -inf" : "NaN";
        throw FrameError("frame " + std::to_string(frame) + " of the logits holds " + what +
                         ", expected finite numbers (-inf for a label that cannot be); look at the model's output");
    }
    // The usual case, in loops that become vector code; a label's logarithm is clipped where it is a token.
    const std::vector<Token> &soften(const float *row, std::size_t frame) {
        const std::size_t size = emission_.num_labels;
        const float largest = largest_of(row, size);
        for (std::size_t i = 0; i < size; ++i) floats_[i] = exp_float(row[i] - largest);
        const float sum = row_sum(floats_.data(), size);
        check(largest, sum, frame);
        const float log_sum = std::log(sum), top = 0.0f - log_sum;
        for (std::size_t i = 0; i < size; ++i) floats_[i] = (row[i] - largest) - log_sum;
        columns_.resize(size);
        std::size_t num_columns = 0;
        for (std::size_t i = 0; i < size; ++i) {
            columns_[num_columns] = static_cast<Index>(i);
            num_columns += floats_[i] >= least_float_;
        }
        columns_.resize(num_columns);
        const auto is_best = [&](Index column) { return floats_[column] == top; };
        auto best = std::find_if(columns_.begin(), columns_.end(), is_best);
        if (best != columns_.end()) {
            order_(columns_, *best);
        } else {
            order_(columns_, static_cast<Index>(std::find(floats_.begin(), floats_.end(), top) - floats_.begin()));
        }
        tokens_.clear();
        for (const Index column : columns_) tokens_.push_back({column, clipped(floats_[column])});
        return tokens_;
    }
    static float largest_of(const float *row, std::size_t size) {
        float part[8];
        std::fill(part, part + 8, row[0]);
        std::size_t i = 0;
        for (; i + 8 <= size; i += 8) {
            for (int k = 0; k < 8; ++k) part[k] = row[i + k] > part[k] ? row[i + k] : part[k];
        }
        for (; i < size; ++i) part[0] = row[i] > part[0] ? row[i] : part[0];
        return *std::max_element(part, part + 8);
    }
    void soften(const double *row, std::size_t frame) {
        const std::size_t size = emission_.num_labels;
        double largest = row[0];
        for (std::size_t i = 1; i < size; ++i) largest = row[i] > largest ? row[i] : largest;
        for (std::size_t i = 0; i < size; ++i) doubles_[i] = std::exp(row[i] - largest);
        const double sum = row_sum(doubles_.data(), size);
        check(largest, sum, frame);
        const double log_sum = std::log(sum);
        for (std::size_t i = 0; i < size; ++i) clip(i, (row[i] - largest) - log_sum);
    }
    // As NumPy does it in float16: every step rounds.
    void soften_half(std::size_t frame) {
        const std::size_t size = emission_.num_labels;
        float largest = floats_[0];
        for (std::size_t i = 1; i < size; ++i) largest = floats_[i] > largest ? floats_[i] : largest;
        halves_.resize(size);
        for (std::size_t i = 0; i < size; ++i) {
            floats_[i] = round_half(floats_[i] - largest);
            halves_[i] = round_half(std::exp(floats_[i]));
        }
        const float sum = round_half(row_sum(halves_.data(), size));
        check(largest, sum, frame);
        const float log_sum = round_half(std::log(sum));
        for (std::size_t i = 0; i < size; ++i) clip(i, round_half(floats_[i] - log_sum));
    }
    static double clipped(double logp) { return std::min(std::max(logp, kFloorLogp), 0.0); }
    void clip(std::size_t i, double logp) { logp_[i] = clipped(logp); }

    const Emission &emission_;
    double least_;
    float least_float_;
    std::vector<double> logp_, doubles_;
    std::vector<float> floats_, halves_;
    std::vector<Index> columns_;
    std::vector<Token> tokens_;
    SetOrder order_;
};

// --- the search ------------------------------------------------------------------------------------------------

struct Options {
    std::size_t beam_width;
    double beam_prune_logp, token_min_logp;
    bool prune_history;
    double alpha, beta, unk_score_offset;
    bool score_boundary;
    int order;                   // of the language model; 1 without one
    const Trie *unigrams;        // may be null
    const Trie *hotwords;        // may be null
    double hotword_weight;
    std::size_t n_best;          // how many hypotheses to write out
    bool with_pieces;            // and whether with the frames of their labels
};

struct Span {
    std::int64_t start, end;  // frames; end is exclusive
};

struct Hypothesis {
    std::string text;
    std::vector<std::pair<std::string, Span>> words;
    struct Piece {
        Index column;
        Span span;
        std::int64_t word;  // which word it is part of; -1 for a space
    };
    std::vector<Piece> pieces;
    double logit_score, lm_score;
    Scorer::State state;
};

// The memory of a search, kept from one utterance to the next.
struct Scratch {
    // A string that some beam has as its partial word.
    struct Part {
        std::size_t from;  // its bytes
        Index size, chars;
        Index unigram, hotword;  // nodes of the tries
        double score;            // what pyctcdecode adds for an unfinished word; without a model, for hotwords
        std::uint64_t goes_on;   // the labels that make the beginning of a word of it; 0 is not looked at yet
        Scorer::Word word;
        bool looked_up;
        std::int32_t num_hot;  // hotwords in it as a whole; -1 is not counted yet
    };
    // The whole words of some beam.
    struct Text {
        Index parent, part;  // its words but the last, and the last
        double raw, score;   // of the language model; with hotwords
        Scorer::State state;
        std::int64_t num_hot;
        Index history;  // its last words, as a number
        bool unscored;  // see settle()
        std::size_t recent;
    };
    // Where a frame's candidate is. The stamp is the frame.
    struct Place {
        Index stamp, slot;
    };
    // What a beam is equal by: a prefix and the label of its last frame.
    struct Variant {
        Index label;
        Place place;
    };
    static constexpr Index kBlankVariant = 0, kMainVariant = 1, kFirstOther = 2;
    struct Other {
        Variant variant;
        Index next;
    };
    // A prefix, in one line of the cache.
    struct alignas(64) Node {
        Index text, part;
        Index after;                   // the text that ends with this partial word
        Index first_child, next_child;  // of simple alphabets
        Place blank;
        Variant main;                  // what it was made for
        Index others;                  // further variants, of alphabets that are not simple
        Index live, first_beam;        // the frame in which it has beams, and the best of them
        Index history;                 // of its text
        double score;                  // what is added to the sum of log-probabilities
    };
    struct WordSpan {
        Index parent;
        std::int32_t start, end;
    };
    struct Piece {
        Index parent, column;
        std::int32_t start, parent_end;
        bool opens;
    };
    struct Beam {
        double logp, score;
        double text_score;  // of the whole words
        Index node, variant, label;
        std::int32_t start, end;  // of the partial word
        Index words, pieces;
        std::int32_t piece_end;
        bool has_part;
        Place fresh;  // of a prefix's best beam: its candidate that goes on with one label, stamped by the label's turn
    };
    enum Step : std::uint8_t { kStay, kRepeat, kSpace, kOpen, kGrow };
    struct Candidate {
        double logp, score;
        Index node, variant, source, column, label;
        Index text, part;  // of the node to make if this is kept, where there is none
        Step step;
    };
    struct Ranked {
        double score;
        Index index;
    };

    std::string bytes;
    std::vector<Part> parts;
    std::vector<Text> texts;
    std::vector<Node> nodes;
    std::vector<Other> others;
    std::vector<Index> part_children;  // of parts: parts, a row of labels each, where there are few labels
    KeyTable children, far_part_children;
    KeyTable node_of, part_of, text_of, history_of;
    Table<8> kept;  // of one frame: so sparse that most are found, or not, at the first look
    std::vector<Index> recent;     // the last words of texts
    std::vector<WordSpan> word_spans;
    std::vector<Piece> pieces;
    std::vector<Beam> beams, next_beams;
    std::vector<Candidate> candidates;  // of which the first are this frame's
    std::vector<Ranked> ranked, merged;
    std::vector<std::size_t> runs;
    std::unique_ptr<KenlmScorer> kenlm;

    void clear() {
        bytes.clear();
        parts.clear();
        texts.clear();
        nodes.clear();
        others.clear();
        part_children.clear();
        for (KeyTable *table : {&children, &far_part_children, &node_of, &part_of, &text_of, &history_of}) table->clear();
        recent.clear();
        word_spans.clear();
        pieces.clear();
        beams.clear();
    }
};

// `Round` is how sums are rounded.
template <class Round>
class Search {
    using Part = Scratch::Part;
    using Text = Scratch::Text;
    using Node = Scratch::Node;
    using Beam = Scratch::Beam;
    using Candidate = Scratch::Candidate;
    using Step = Scratch::Step;
    using Ranked = Scratch::Ranked;

 public:
    Search(const Labels &labels, const Options &options, Scorer *scorer, Scratch &scratch)
        : labels_(labels), o_(options), scorer_(scorer), s_(scratch) {
        stride_ = labels.all.size() <= 64 ? labels.all.size() : 0;
        history_size_ = static_cast<std::size_t>(std::max(1, options.order - 1));
        parts_cost_ = !options.hotwords && (!scorer || options.unk_score_offset <= 0.0);
        looks_ahead_ = scorer && parts_cost_ && options.unigrams && labels.simple && labels.all.size() < 64;
        if (scorer && parts_cost_ && options.alpha >= 0.0 && options.unigrams && options.unigrams->num_words()) {
            most_known_ = weighted(scorer->largest_log10_prob());
            most_unknown_ = weighted(scorer->largest_log10_prob() + options.unk_score_offset);
        }
    }

    std::vector<Hypothesis> run(const Emission &emission, Scorer::State start) {
        s_.clear();
        begin(start);
        FrameReader reader(emission, o_.token_min_logp);
        for (std::size_t frame = 0; frame < emission.num_frames; ++frame) {
            const std::vector<Token> &tokens = reader.read(frame);
            now_ = static_cast<Index>(frame + 1);
            if (tokens.size() == 1 && labels_.all[tokens[0].column].blank && stay(tokens[0].logp)) continue;
            expand(tokens);
            if (scorer_ && labels_.ambiguous) settle();
            prune();
            advance(static_cast<std::int32_t>(frame));
        }
        return finish();
    }

 private:
    // Parts are one per string, texts one per string, nodes one per pair of them.

    std::string_view bytes_of(const Part &part) const { return {s_.bytes.data() + part.from, part.size}; }

    Index intern_part(std::string_view text) {
        std::uint64_t key = detail::bytes_hash(text.data(), text.size());
        for (;; ++key) {
            Index &found = s_.part_of.at(key);
            if (found == kNone) {
                found = static_cast<Index>(s_.parts.size());
                return make_part(text);
            }
            if (bytes_of(s_.parts[found]) == text) return found;
        }
    }
    Index make_part(std::string_view text) {
        return make_part(kRoot, kRoot, 0, text, s_.bytes.size());
    }
    // The part whose bytes begin at `from` and are to end with `added`, given what its beginning has in the tries.
    Index make_part(Index unigram, Index hotword, Index chars, std::string_view added, std::size_t from) {
        s_.bytes.append(added);
        Part &part = s_.parts.emplace_back();
        part.from = from;
        part.size = static_cast<Index>(s_.bytes.size() - from);
        part.chars = chars + static_cast<Index>(count_chars(added));
        part.num_hot = -1;
        part.unigram = o_.unigrams ? o_.unigrams->step(unigram, added) : kNone;
        part.hotword = o_.hotwords ? o_.hotwords->step(hotword, added) : kNone;
        if (part.size == 0) {
            part.score = 0.0;
        } else if (part.hotword != kNone) {
            part.score = o_.hotword_weight * part.chars / o_.hotwords->shortest(part.hotword);
        } else if (scorer_) {
            part.score = unfinished_score(part.unigram != kNone, part.chars);
        }
        s_.part_children.resize(s_.part_children.size() + stride_, kNone);
        return static_cast<Index>(s_.parts.size() - 1);
    }

    double unfinished_score(bool begins_word, Index chars) const {
        const double score = begins_word ? o_.unk_score_offset * 0.0 : o_.unk_score_offset;
        return chars > kUsualWordLength ? score * chars / kUsualWordLength : score;
    }
    // The score of the part with one more label, if that is known before it is made: no word begins so.
    double score_ahead(Index part, Index label) {
        Part &p = s_.parts[part];
        if (!p.goes_on) {
            p.goes_on = labels_.of_bytes | kLookedAt;
            const auto add = [&](unsigned char byte) { p.goes_on |= labels_.of_byte[byte]; };
            if (p.unigram != kNone) o_.unigrams->for_each_byte(p.unigram, add);
        }
        return p.goes_on >> label & 1 ? 0.0 : unfinished_score(false, p.chars + 1);
    }

    Index grown_part(Index part, Index column) {
        const auto make = [&] {
            if (labels_.simple) {
                const Part &p = s_.parts[part];
                const std::size_t from = s_.bytes.size();
                s_.bytes.append(s_.bytes, p.from, p.size);
                return make_part(p.unigram, p.hotword, p.chars, labels_.all[column].text, from);
            }
            buffer_.assign(bytes_of(s_.parts[part]));
            buffer_ += labels_.all[column].text;
            return intern_part(buffer_);
        };
        if (stride_) {
            const std::size_t at = part * stride_ + column;
            if (s_.part_children[at] == kNone) {
                const Index made = make();
                s_.part_children[at] = made;
            }
            return s_.part_children[at];
        }
        const std::uint64_t key = std::uint64_t(part) << 32 | column;
        Index found = s_.far_part_children.find(key);
        if (found == kNone) s_.far_part_children.at(key) = found = make();
        return found;
    }

    std::int32_t num_hot(Index part) {
        Part &p = s_.parts[part];
        if (p.num_hot < 0) {
            p.num_hot = 0;
            if (o_.hotwords) {
                for_each_split(bytes_of(p), [&](std::string_view word) {
                    p.num_hot += o_.hotwords->is_word(o_.hotwords->step(kRoot, word));
                });
            }
        }
        return p.num_hot;
    }

    // log10 probability of a word with the offset for unknown ones, and the state after it.
    Scorer::Scored score_word(Scorer::State state, Index part) {
        Part &p = s_.parts[part];
        if (!p.looked_up) {
            p.word = scorer_->word(bytes_of(p));
            if (o_.unigrams && o_.unigrams->num_words()) p.word.known = o_.unigrams->is_word(p.unigram);
            p.looked_up = true;
        }
        Scorer::Scored scored = scorer_->score(state, p.word.id);
        if (!p.word.known) scored.log10_prob += o_.unk_score_offset;
        return scored;
    }
    double weighted(double log10_prob) const { return o_.alpha * log10_prob * kLog10 + o_.beta; }

    std::uint64_t text_key(Index text, Index part) {
        if (!labels_.ambiguous) return std::uint64_t(text) << 32 | part;
        buffer_ = joined(text);
        if (!buffer_.empty()) buffer_ += ' ';
        buffer_ += bytes_of(s_.parts[part]);
        return intern_part(buffer_);
    }

    // The text with the part as one more word.
    Index extended(Index text, Index part) {
        if (s_.parts[part].size == 0) return text;
        const Index made = static_cast<Index>(s_.texts.size());
        if (!labels_.simple) {
            Index &found = s_.text_of.at(text_key(text, part));
            if (found != kNone) return found;
            found = made;
        }
        Text &next = s_.texts.emplace_back();
        next.parent = text;
        next.part = part;
        if (o_.hotwords) {
            next.num_hot = s_.texts[text].num_hot + num_hot(part);
            next.score = o_.hotword_weight * static_cast<double>(next.num_hot);
        }
        next.unscored = scorer_ && labels_.ambiguous;
        if (scorer_ && !labels_.ambiguous) score_text(next, s_.texts[text], part);
        if (o_.prune_history) remember(next, text, part);
        return made;
    }
    void score_text(Text &next, const Text &text, Index part) {
        const Scorer::Scored scored = score_word(text.state, part);
        next.raw = text.raw + weighted(scored.log10_prob);
        next.score = next.raw + next.score;
        next.state = scored.next;
    }

    // Where one text is words in several ways, the way that counts is that of the last beam which led to the first
    // of the frame's candidates with this text.
    void settle() {
        for (std::size_t i = 0; i < num_candidates_; ++i) {
            Candidate &c = s_.candidates[i];
            Node &node = s_.nodes[c.node];
            Text &text = s_.texts[node.text];
            if (text.unscored) {
                const Node &from = s_.nodes[s_.beams[c.source].node];
                text.unscored = false;
                score_text(text, s_.texts[from.text], from.part);
            }
            node.score = prefix_score(node.text, node.part);
            c.score = total(c.logp, node);
        }
    }

    // Number the last words of a text: equal numbers, equal words.
    void remember(Text &next, Index text, Index part) {
        if (labels_.simple && history_size_ == 1) {
            next.history = part;
            return;
        }
        if (labels_.simple && history_size_ == 2) {
            Index &found = s_.history_of.at(std::uint64_t(s_.texts[text].part) << 32 | part);
            if (found == kNone) found = static_cast<Index>(s_.texts.size() - 1);
            next.history = found;
            return;
        }
        next.recent = s_.recent.size();
        s_.recent.resize(next.recent + history_size_, kNone);
        const auto recent = [&](std::size_t from) { return s_.recent.begin() + static_cast<std::ptrdiff_t>(from); };
        std::copy(recent(s_.texts[text].recent), recent(s_.texts[text].recent + history_size_), recent(next.recent));
        const auto push = [&](Index word) {
            std::copy(recent(next.recent + 1), recent(next.recent + history_size_), recent(next.recent));
            s_.recent[next.recent + history_size_ - 1] = word;
        };
        if (has_space(bytes_of(s_.parts[part]))) {
            std::vector<std::string> words;
            for_each_split(bytes_of(s_.parts[part]), [&](std::string_view word) { words.emplace_back(word); });
            for (const std::string &word : words) push(intern_part(word));
        } else {
            push(part);
        }
        std::uint64_t key = detail::bytes_hash(&s_.recent[next.recent], history_size_ * sizeof(Index));
        for (;; ++key) {
            Index &found = s_.history_of.at(key);
            if (found == kNone) found = static_cast<Index>(next.recent / history_size_);
            if (std::equal(recent(next.recent), recent(next.recent + history_size_), recent(found * history_size_))) {
                next.history = found;
                return;
            }
        }
    }

    Index make_node(Index text, Index part, Index label) {
        Node &node = s_.nodes.emplace_back();
        node.text = text;
        node.part = part;
        node.after = s_.parts[part].size ? kNone : text;
        node.first_child = node.next_child = node.others = kNone;
        node.main.label = label;
        node.history = s_.texts[text].history;
        node.score = prefix_score(text, part);
        return static_cast<Index>(s_.nodes.size() - 1);
    }
    Index make_child(Index parent, Index text, Index part, Index label) {
        const Index child = make_node(text, part, label);
        s_.nodes[child].next_child = s_.nodes[parent].first_child;
        s_.nodes[parent].first_child = child;
        return child;
    }
    Index intern_node(Index text, Index part, Index label) {
        Index &found = s_.node_of.at(std::uint64_t(text) << 32 | part);
        if (found == kNone) found = make_node(text, part, label);
        return found;
    }
    double prefix_score(Index text, Index part) const { return s_.texts[text].score + s_.parts[part].score; }

    Index variant_of(Index node, Index label) {
        if (s_.nodes[node].main.label == label) return Scratch::kMainVariant;
        Index *at = &s_.nodes[node].others;
        for (; *at != kNone; at = &s_.others[*at].next) {
            if (s_.others[*at].variant.label == label) return *at + Scratch::kFirstOther;
        }
        const Index made = static_cast<Index>(s_.others.size());
        *at = made;
        s_.others.push_back({{label, {0, 0}}, kNone});
        return made + Scratch::kFirstOther;
    }

    Index text_after(Index node) {
        if (s_.nodes[node].after == kNone) {
            const Index text = extended(s_.nodes[node].text, s_.nodes[node].part);
            s_.nodes[node].after = text;
        }
        return s_.nodes[node].after;
    }

    Index find_child(Index node, Index arc) const {
        if (!labels_.simple) return s_.children.find(std::uint64_t(node) << 32 | arc);
        Index child = s_.nodes[node].first_child;
        while (child != kNone && s_.nodes[child].main.label != arc) child = s_.nodes[child].next_child;
        return child;
    }

    // The sum of log-probabilities with what is added to it for the prefix.
    double total(double logp, const Node &n) const { return total(logp, n.score, n.text, n.part); }
    double total(double logp, double score, Index text, Index part) const {
        if (scorer_) return add<Round>(logp, score);
        if (!o_.hotwords) return logp;
        return add<Round>(add<Round>(logp, s_.texts[text].score), s_.parts[part].score);
    }

    void begin(Scorer::State start) {
        intern_part("");
        Text text{};
        text.parent = kNone;
        text.state = start;
        s_.recent.resize(history_size_, kNone);
        s_.history_of.at(detail::bytes_hash(s_.recent.data(), history_size_ * sizeof(Index))) = 0;
        s_.texts.push_back(text);
        intern_node(0, 0, kNone);
        Beam beam{};
        beam.variant = Scratch::kMainVariant;
        beam.label = kNone;
        beam.start = beam.end = -1;
        beam.words = beam.pieces = kNone;
        s_.beams.push_back(beam);
    }

    void mark_live() {
        for (Index i = static_cast<Index>(s_.beams.size()); i-- > 0;) {
            Node &node = s_.nodes[s_.beams[i].node];
            s_.beams[i].text_score = s_.texts[node.text].score;
            node.live = now_;
            node.first_beam = i;
        }
    }

    // A frame of nothing but blank, after another: sums move, nothing else. False if rounding moved their order.
    bool stay(double logp) {
        for (const Beam &beam : s_.beams) {
            if (beam.label != kBlank) return false;
        }
        double before = std::numeric_limits<double>::infinity(), largest = 0;
        for (std::size_t i = 0; i < s_.beams.size(); ++i) {
            const double score = total(add<Round>(s_.beams[i].logp, logp), s_.nodes[s_.beams[i].node]);
            if (i == 0) largest = score;
            if (!(score <= before) || !(score >= add<Round>(largest, o_.beam_prune_logp))) return false;
            before = score;
        }
        for (Beam &beam : s_.beams) {
            beam.logp = add<Round>(beam.logp, logp);
            beam.score = total(beam.logp, s_.nodes[beam.node]);
        }
        return true;
    }

    Scratch::Place &place_of(Node &node, Index variant) {
        if (variant == Scratch::kMainVariant) return node.main.place;
        if (variant == Scratch::kBlankVariant) return node.blank;
        return s_.others[variant - Scratch::kFirstOther].variant.place;
    }

    void propose(Index node, Index variant, Index label, double logp, Index source, Step step, Index column) {
        Node &n = s_.nodes[node];
        Scratch::Place &place = place_of(n, variant);
        if (place.stamp != now_) {
            place = {now_, static_cast<Index>(num_candidates_)};
            Candidate &c = s_.candidates[num_candidates_++];
            c.logp = logp;
            c.score = total(logp, n);
            c.node = node;
            c.variant = variant;
            c.source = source;
            c.column = column;
            c.label = label;
            c.step = step;
        } else {  // the later beam's frames win
            Candidate &c = s_.candidates[place.slot];
            c.logp = log_sum<Round>(c.logp, logp);
            c.score = total(c.logp, n);
            c.source = source;
            c.step = step;
            c.column = column;
        }
    }

    // A candidate for a prefix that has no node, which only the beams of the prefix before it can reach.
    void propose_fresh(Index first_beam, Index text, Index part, Index label, double logp, Index source, Step step,
                       Index column) {
        Scratch::Place &place = s_.beams[first_beam].fresh;
        const bool is_new = place.stamp != turn_;
        if (is_new) place = {turn_, static_cast<Index>(num_candidates_++)};
        Candidate &c = s_.candidates[place.slot];
        c.logp = is_new ? logp : log_sum<Round>(c.logp, logp);
        c.score = total(c.logp, prefix_score(text, part), text, part);
        c.node = kNone;
        c.variant = Scratch::kMainVariant;
        c.source = source;
        c.column = column;
        c.label = label;
        c.text = text;
        c.part = part;
        c.step = step;
    }

    void expand(const std::vector<Token> &tokens) {
        num_candidates_ = 0;
        s_.runs.clear();
        mark_live();
        floor_ = labels_.one_source ? least_useful(tokens) : -std::numeric_limits<double>::infinity();
        const Index num_beams = static_cast<Index>(s_.beams.size());
        for (const Token &token : tokens) {
            const Label &label = labels_.all[token.column];
            ++turn_;
            s_.runs.push_back(num_candidates_);
            if (s_.candidates.size() < num_candidates_ + num_beams) {
                s_.candidates.resize(2 * num_candidates_ + num_beams);
            }
            for (Index source = 0; source < num_beams; ++source) {
                const Beam &beam = s_.beams[source];
                const double logp = add<Round>(beam.logp, token.logp);
                if (label.blank) {
                    if (beam.score + token.logp + kLog2 < floor_ && labels_.one_blank && is_hopeless(beam, token.logp)) continue;
                    propose(beam.node, Scratch::kBlankVariant, kBlank, logp, source, Step::kStay, token.column);
                } else if (beam.label == label.same) {
                    propose(beam.node, beam.variant, beam.label, logp, source, Step::kRepeat, token.column);
                } else {
                    extend(beam, label, token, logp, source);
                }
            }
        }
    }

    // Whether a blank after the prefix of this beam, whose beams are two at most, is bound to be pruned.
    bool is_hopeless(const Beam &beam, double logp) const {
        const Node &node = s_.nodes[beam.node];
        return node.others == kNone && s_.beams[node.first_beam].score + logp + kLog2 < floor_;
    }

    // What a candidate's score must reach, at least: the best beam's best candidate and the pruning limit.
    double least_useful(const std::vector<Token> &tokens) {
        const Beam beam = s_.beams[0];
        double best = -std::numeric_limits<double>::infinity();
        for (const Token &token : tokens) {
            const Label &label = labels_.all[token.column];
            double score = beam.score + token.logp;
            if (!label.blank && beam.label != label.same && (scorer_ || o_.hotwords)) {
                if (label.space || label.opens || labels_.can_force) continue;  // rarely the best, and costly
                const Index text = s_.nodes[beam.node].text, part = grown_part(s_.nodes[beam.node].part, label.same);
                score = total(beam.logp + token.logp, prefix_score(text, part), text, part);
            }
            best = std::max(best, score);
        }
        return best + o_.beam_prune_logp - 1e-3 - Round::kError * std::abs(best);
    }

    void extend(const Beam &beam, const Label &label, const Token &token, double logp, Index source) {
        Step step = Step::kGrow;
        Index arc = label.same;
        if (labels_.bpe && (label.opens || force_)) {
            if (force_ && !label.opens) arc += static_cast<Index>(labels_.all.size());
            force_ = label.closes;
            step = Step::kOpen;
        } else if (label.space) {
            step = Step::kSpace;
            if (!beam.has_part) {  // a space after a space
                propose(beam.node, variant_of(beam.node, label.same), label.same, logp, source, step, token.column);
                return;
            }
        }
        const Node &node = s_.nodes[beam.node];
        Index child = find_child(beam.node, arc);
        if (child == kNone || s_.nodes[child].live != now_) {
            // Nothing but this prefix's own beams, two at most, can lead there in this frame.
            const bool may_skip = node.others == kNone && (step != Step::kOpen || beam.has_part);
            const double most = s_.beams[node.first_beam].logp + token.logp + kLog2;
            if (child != kNone) {
                if (may_skip && total(most, s_.nodes[child]) < floor_) return;
            } else {
                // A partial word is not even made where the score of its text alone is too low.
                if (may_skip && parts_cost_ && (!scorer_ || step == Step::kGrow)) {
                    if (most + beam.text_score < floor_) return;
                    if (looks_ahead_ && most + beam.text_score + score_ahead(node.part, label.same) < floor_) return;
                } else if (may_skip && node.after == kNone) {  // nor the model asked of a word that cannot help
                    const bool known = o_.unigrams && o_.unigrams->is_word(s_.parts[node.part].unigram);
                    if (most + s_.texts[node.text].score + (known ? most_known_ : most_unknown_) < floor_) return;
                }
                const Index parent = beam.node;
                Index text = node.text, part = 0;
                if (step == Step::kGrow) {
                    part = grown_part(node.part, label.same);
                } else {
                    text = text_after(parent);
                    if (step == Step::kOpen) part = intern_part(label.clean);
                }
                if (may_skip && total(most, prefix_score(text, part), text, part) < floor_) return;
                if (labels_.simple) {
                    const Index first = s_.nodes[parent].first_beam;
                    return propose_fresh(first, text, part, label.same, logp, source, step, token.column);
                }
                child = intern_node(text, part, label.same);
                s_.children.at(std::uint64_t(parent) << 32 | arc) = child;
            }
        }
        propose(child, variant_of(child, label.same), label.same, logp, source, step, token.column);
    }

    // Rank candidates: those within the limit of the best, the best beam_width of them, equal ones in their order.
    void prune() {
        double largest = -std::numeric_limits<double>::infinity();
        for (std::size_t i = 0; i < num_candidates_; ++i) largest = std::max(largest, s_.candidates[i].score);
        rank(s_.candidates, num_candidates_, largest);
    }
    // Each run of candidates is nearly in order, since the beams it comes from are: sort runs, and merge them.
    template <class C>
    void rank(const std::vector<C> &candidates, std::size_t size, double largest) {
        const double least = add<Round>(largest, o_.beam_prune_logp);
        if (s_.ranked.size() < size) s_.ranked.resize(2 * size), s_.merged.resize(2 * size);
        Ranked *ranked = s_.ranked.data();
        std::size_t kept = 0, i = 0;
        for (std::size_t run = 0; run < s_.runs.size(); ++run) {
            const std::size_t from = kept, to = run + 1 < s_.runs.size() ? s_.runs[run + 1] : size;
            for (; i < to; ++i) {
                ranked[kept].score = candidates[i].score;
                ranked[kept].index = static_cast<Index>(i);
                kept += candidates[i].score >= least;
            }
            s_.runs[run] = from;
            sort_run(ranked + from, ranked + kept);
        }
        if (kept == 0) throw FrameError("no beam has a score: the language model or the weights give NaN; look at alpha, beta and the model");
        s_.runs.push_back(kept);
        merge_runs();
        num_ranked_ = std::min(kept, o_.beam_width);
    }
    static void sort_run(Ranked *from, Ranked *to) {
        std::ptrdiff_t moves = 16 + 8 * (to - from);  // beyond these the run is not as expected
        for (Ranked *next = from + 1; next < to; ++next) {
            const Ranked moved = *next;
            Ranked *at = next;
            for (; at > from && at[-1].score < moved.score; --at) *at = at[-1];
            *at = moved;
            moves -= next - at;
            if (moves < 0) {
                return std::sort(from, to, [](const Ranked &a, const Ranked &b) {
                    return a.score > b.score || (a.score == b.score && a.index < b.index);
                });
            }
        }
    }
    // Neighbours first, so that of equal ones the earlier run's come first. `runs` are their begins, and the end.
    void merge_runs() {
        std::vector<std::size_t> &runs = s_.runs;
        while (runs.size() > 2) {
            std::size_t num_runs = 0;
            for (std::size_t run = 0; run + 1 < runs.size(); run += 2) {
                const bool is_last = run + 2 == runs.size();
                const std::size_t from = runs[run], middle = runs[run + 1], to = is_last ? middle : runs[run + 2];
                const Ranked *a = s_.ranked.data() + from, *a_end = s_.ranked.data() + middle;
                const Ranked *b = a_end, *b_end = s_.ranked.data() + to;
                Ranked *out = s_.merged.data() + from;
                while (a != a_end && b != b_end) {
                    const bool second = b->score > a->score;  // half of the time: a choice, not a jump
                    *out++ = *(second ? b : a);
                    a += !second;
                    b += second;
                }
                out = std::copy(a, a_end, out);
                std::copy(b, b_end, out);
                runs[num_runs++] = from;
            }
            runs[num_runs] = runs.back();
            runs.resize(num_runs + 1);
            s_.ranked.swap(s_.merged);
        }
    }

    void advance(std::int32_t frame) {
        s_.next_beams.resize(num_ranked_);
        s_.kept.clear();
        std::size_t num_beams = 0;
        for (std::size_t i = 0; i < num_ranked_; ++i) {
            const Candidate &c = s_.candidates[s_.ranked[i].index];
            const bool is_fresh = c.node == kNone;
            if (o_.prune_history) {
                const Index history = is_fresh ? s_.texts[c.text].history : s_.nodes[c.node].history;
                if (!keep(history, is_fresh ? c.part : s_.nodes[c.node].part, c.label)) continue;
            }
            const Beam &from = s_.beams[c.source];
            Beam &beam = s_.next_beams[num_beams++];
            beam = from;
            beam.logp = c.logp;
            beam.score = c.score;
            beam.node = is_fresh ? make_child(from.node, c.text, c.part, c.label) : c.node;
            beam.variant = c.variant;
            beam.label = c.label;
            if (c.step == Step::kRepeat) {
                beam.end = beam.piece_end = frame + 1;
            } else if (c.step != Step::kStay) {
                const bool closes = c.step != Step::kGrow && from.has_part;
                beam.has_part = c.step != Step::kSpace && s_.parts[s_.nodes[beam.node].part].size != 0;
                if (closes) {
                    s_.word_spans.push_back({beam.words, beam.start, beam.end});
                    beam.words = static_cast<Index>(s_.word_spans.size() - 1);
                }
                if (c.step == Step::kSpace) {
                    beam.start = beam.end = -1;
                } else {
                    beam.start = c.step == Step::kOpen || beam.start < 0 ? frame : beam.start;
                    beam.end = frame + 1;
                }
                if (o_.with_pieces && (closes || c.step != Step::kSpace)) {
                    s_.pieces.push_back({beam.pieces, c.column, frame, beam.piece_end, closes});
                    beam.pieces = static_cast<Index>(s_.pieces.size() - 1);
                    beam.piece_end = frame + 1;
                }
            }
        }
        s_.next_beams.resize(num_beams);
        s_.beams.swap(s_.next_beams);
    }

    // Whether this is the first beam with its last words, partial word and label.
    bool keep(Index history, Index part, Index label) {
        const std::uint64_t key = detail::mix(std::uint64_t(history) << 32 | part);
        Index &found = s_.kept.at(key ^ (std::uint64_t(label) + 1) * 0x9E3779B97F4A7C15ull);
        if (found != kNone) return false;
        found = 0;
        return true;
    }

    std::string joined(Index text) const {
        std::vector<Index> words;
        for (; s_.texts[text].parent != kNone; text = s_.texts[text].parent) words.push_back(s_.texts[text].part);
        std::string all;
        for (auto word = words.rbegin(); word != words.rend(); ++word) {
            if (!all.empty()) all += ' ';
            all += bytes_of(s_.parts[*word]);
        }
        return all;
    }

    // Beams with one text are one, and the language model hears of the end.
    struct Final {
        double logp, score;
        Index text, source, from_text, part;
        Scorer::State state;
    };
    std::vector<Hypothesis> finish() {
        std::vector<Final> finals;
        KeyTable slots;
        for (Index source = 0; source < s_.beams.size(); ++source) {
            const Beam &beam = s_.beams[source];
            const Index text = text_after(beam.node), from = s_.nodes[beam.node].text, part = s_.nodes[beam.node].part;
            Index &slot = slots.at(text);
            if (slot == kNone) {
                slot = static_cast<Index>(finals.size());
                finals.push_back({beam.logp, 0.0, text, source, from, part, 0});
            } else {
                Final &f = finals[slot];
                f = {log_sum<Round>(f.logp, beam.logp), 0.0, text, source, from, part, 0};
            }
        }
        double largest = -std::numeric_limits<double>::infinity();
        for (Final &f : finals) {
            const double hot = o_.hotwords ? o_.hotword_weight * static_cast<double>(s_.texts[f.text].num_hot) : 0.0;
            if (scorer_) {
                Scorer::Scored scored = score_word(s_.texts[f.from_text].state, f.part);
                f.state = scored.next;
                double log10_prob = scored.log10_prob;
                if (o_.score_boundary) log10_prob += scorer_->score(scored.next, scorer_->end_word()).log10_prob;
                f.score = add<Round>(f.logp, s_.texts[f.from_text].raw + weighted(log10_prob) + hot);
            } else {
                f.score = o_.hotwords ? add<Round>(f.logp, hot) : f.logp;
            }
            largest = f.score > largest ? f.score : largest;
        }
        s_.runs.assign(1, 0);
        rank(finals, finals.size(), largest);
        std::vector<Hypothesis> best;
        for (std::size_t i = 0; i < std::min(num_ranked_, o_.n_best); ++i) {
            best.push_back(write_out(finals[s_.ranked[i].index]));
        }
        return best;
    }

    Hypothesis write_out(const Final &f) const {
        const Beam &beam = s_.beams[f.source];
        Hypothesis h;
        h.logit_score = f.logp;
        h.lm_score = f.score;
        h.state = f.state;
        std::vector<Span> spans;
        if (s_.parts[f.part].size) spans.push_back({beam.start, beam.end});
        for (Index at = beam.words; at != kNone; at = s_.word_spans[at].parent) {
            spans.push_back({s_.word_spans[at].start, s_.word_spans[at].end});
        }
        auto span = spans.rbegin();
        for_each_split(joined(f.text), [&](std::string_view word) {
            if (!h.text.empty()) h.text += ' ';
            h.text += word;
            if (span != spans.rend()) h.words.emplace_back(word, *span++);
        });
        write_pieces(beam, h);
        return h;
    }

    void write_pieces(const Beam &beam, Hypothesis &h) const {
        const std::int64_t num_words = static_cast<std::int64_t>(h.words.size());
        std::int64_t word = num_words - beam.has_part;
        std::int32_t end = beam.piece_end;
        for (Index at = beam.pieces; at != kNone; at = s_.pieces[at].parent) {
            const Scratch::Piece &piece = s_.pieces[at];
            const bool is_space = labels_.all[piece.column].space;
            if (!is_space || !h.pieces.empty()) {  // not the space after the last word
                h.pieces.push_back({piece.column, {piece.start, end}, is_space || word == num_words ? -1 : word});
            }
            word -= piece.opens;
            end = piece.parent_end;
        }
        std::reverse(h.pieces.begin(), h.pieces.end());
    }

    static constexpr double kLog2 = 0.69314718055994531;
    static constexpr std::uint64_t kLookedAt = std::uint64_t(1) << 63;

    const Labels &labels_;
    const Options &o_;
    Scorer *scorer_;
    Scratch &s_;
    std::size_t stride_, history_size_;
    bool force_ = false;
    bool parts_cost_;  // a partial word never raises the score of a text
    bool looks_ahead_;  // at whether a word begins so before a part is made
    // What a word can add to the score of a text, at most.
    double most_known_ = std::numeric_limits<double>::infinity(), most_unknown_ = most_known_;
    Index now_ = 0, turn_ = 0;  // frames, and labels of frames
    std::size_t num_candidates_ = 0, num_ranked_ = 0;
    double floor_ = 0;
    std::string buffer_;
};

// --- what Python sees ------------------------------------------------------------------------------------------

nb::object to_python(const std::string &text) {
    nb::object made = nb::steal(PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "surrogateescape"));
    if (!made.is_valid()) throw nb::python_error();
    return made;
}

std::string_view utf8(nb::handle text) {
    Py_ssize_t size = 0;
    const char *bytes = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (!bytes) throw nb::python_error();
    return {bytes, static_cast<std::size_t>(size)};
}

nb::tuple to_python(const Hypothesis &h, const Labels &labels, nb::object state, bool with_pieces) {
    nb::list words;
    for (const auto &[word, span] : h.words) {
        words.append(nb::make_tuple(to_python(word), nb::make_tuple(span.start, span.end)));
    }
    nb::object pieces = nb::none();
    if (with_pieces) {
        nb::list all;
        for (const Hypothesis::Piece &piece : h.pieces) {
            all.append(nb::make_tuple(to_python(labels.all[piece.column].text), piece.column, piece.span.start,
                                      piece.span.end, piece.word));
        }
        pieces = all;
    }
    return nb::make_tuple(to_python(h.text), state, words, h.logit_score, h.lm_score, pieces);
}

using Array = nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig, nb::ndim<2>>;

// Decodes; any number of threads may use one at once.
class BeamSearch {
 public:
    BeamSearch(const std::vector<std::string> &labels, bool is_bpe) : labels_(labels, is_bpe) {}

    // `model` is None, an NgramModel or a kenlm.Model, whose State `start_state` is; an integer for NgramModel.
    nb::list search(const std::vector<Array> &arrays, const std::vector<bool> &are_probabilities, bool are_log_probs, nb::object model,
                    const Trie *unigrams, double alpha, double beta, double unk_score_offset, bool score_boundary,
                    std::size_t beam_width, double beam_prune_logp, double token_min_logp, bool prune_history,
                    const Trie *hotwords, double hotword_weight, nb::object start_state, std::size_t n_best,
                    bool with_pieces, std::size_t num_threads) {
        if (hotwords && !hotwords->has_shortest()) throw std::invalid_argument("too many hotwords, expected at most 100,000");
        Job job{{beam_width, beam_prune_logp, token_min_logp, prune_history, alpha, beta, unk_score_offset,
                 score_boundary, 1, unigrams, hotwords, hotword_weight, n_best, with_pieces},
                nullptr, {}, {}, 0, {}, {}};
        if (nb::isinstance<NgramModel>(model)) {
            job.ngram = nb::cast<const NgramModel *>(model);
            job.options.order = job.ngram->order();
            job.start = score_boundary ? job.ngram->begin_state() : job.ngram->null_state();
            if (!start_state.is_none()) job.start = nb::cast<Scorer::State>(start_state);
        } else if (!model.is_none()) {
            job.kenlm = model;
            job.options.order = nb::cast<int>(model.attr("order"));
            if (!start_state.is_none()) job.kenlm_start = start_state;
        }
        for (std::size_t i = 0; i < arrays.size(); ++i) {
            job.emissions.push_back(checked(arrays[i], are_probabilities.at(i)));
            job.emissions.back().are_log_probs = are_log_probs && !are_probabilities.at(i);
            if (are_log_probs && !are_probabilities.at(i) && job.emissions.back().dtype != Dtype::f64) {
                throw FrameError("log-probabilities are expected to be of float64");
            }
        }
        job.results.resize(arrays.size());
        {
            nb::gil_scoped_release release;
            decode_all(job, std::min(num_threads, arrays.size()));
        }
        nb::list all;
        for (Result &result : job.results) {
            nb::list best;
            for (std::size_t i = 0; i < result.best.size(); ++i) {
                nb::object state = nb::none();
                if (job.ngram) state = nb::int_(result.best[i].state);
                if (job.kenlm.is_valid()) state = result.states[i];
                best.append(to_python(result.best[i], labels_, state, with_pieces));
            }
            result = {};
            all.append(best);
        }
        return all;
    }

 private:
    struct Result {
        std::vector<Hypothesis> best;
        std::vector<nb::object> states;
    };
    struct Job {
        Options options;
        const NgramModel *ngram;
        nb::object kenlm, kenlm_start;
        Scorer::State start;
        std::vector<Emission> emissions;
        std::vector<Result> results;
    };

    Emission checked(const Array &array, bool are_probabilities) const {
        if (array.shape(1) != labels_.all.size() || labels_.all.empty()) {
            throw FrameError("an emission has " + std::to_string(array.shape(1)) + " columns, expected " +
                             std::to_string(labels_.all.size()) + ", one for each label");
        }
        Dtype dtype = Dtype::f16;
        if (array.dtype() == nb::dtype<float>()) {
            dtype = Dtype::f32;
        } else if (array.dtype() == nb::dtype<double>()) {
            dtype = Dtype::f64;
        } else if (array.dtype().code != std::uint8_t(nb::dlpack::dtype_code::Float) || array.dtype().bits != 16) {
            throw FrameError("an emission is of an unexpected type, expected float16, float32 or float64");
        }
        return {array.data(), array.shape(0), array.shape(1), dtype, are_probabilities, false};
    }

    // From here to decode_one the GIL is not held.
    void decode_all(Job &job, std::size_t num_threads) {
        std::atomic<std::size_t> next{0};
        std::exception_ptr failure;
        std::mutex failing;
        const auto work = [&] {
            std::unique_ptr<Scratch> scratch = take();
            for (std::size_t i; (i = next.fetch_add(1)) < job.emissions.size();) {
                try {
                    decode_one(job, i, *scratch);
                } catch (...) {
                    next = job.emissions.size();
                    const std::lock_guard lock(failing);
                    if (!failure) failure = std::current_exception();
                }
            }
            give_back(std::move(scratch));
        };
        const auto work_in_thread = [&] {
            if (!job.kenlm.is_valid()) return work();
            const nb::gil_scoped_acquire known_to_python;  // once, not at every question to the model
            const nb::gil_scoped_release release;
            work();
        };
        std::vector<std::thread> threads;
        for (std::size_t i = 1; i < num_threads; ++i) threads.emplace_back(work_in_thread);
        work();
        for (std::thread &thread : threads) thread.join();
        if (failure) std::rethrow_exception(failure);
    }

    void decode_one(Job &job, std::size_t i, Scratch &scratch) const {
        Result &result = job.results[i];
        if (job.ngram) {
            NgramScorer scorer(*job.ngram);
            result.best = run(job, i, &scorer, scratch, job.start);
        } else if (job.kenlm.is_valid()) {
            std::unique_ptr<KenlmScorer> &scorer = scratch.kenlm;
            Scorer::State start = 0;
            {
                const nb::gil_scoped_acquire gil;
                if (!scorer || !scorer->serves(job.kenlm)) {
                    scorer = std::make_unique<KenlmScorer>(job.kenlm, nb::module_::import_("kenlm").attr("State"));
                }
                scorer->forget_if_large();
                if (job.kenlm_start.is_valid()) start = scorer->number(job.kenlm_start);
            }
            if (!job.kenlm_start.is_valid()) {
                start = job.options.score_boundary ? scorer->begin_state() : scorer->null_state();
            }
            result.best = run(job, i, scorer.get(), scratch, start);
            const nb::gil_scoped_acquire gil;
            for (const Hypothesis &h : result.best) result.states.push_back(scorer->state(h.state));
        } else {
            result.best = run(job, i, nullptr, scratch, 0);
        }
    }

    std::vector<Hypothesis> run(const Job &job, std::size_t i, Scorer *scorer, Scratch &scratch,
                                Scorer::State start) const {
        const Emission &emission = job.emissions[i];
        if (emission.are_probabilities && emission.dtype == Dtype::f32) {
            return Search<Float32>(labels_, job.options, scorer, scratch).run(emission, start);
        }
        if (emission.are_probabilities && emission.dtype == Dtype::f16) {
            return Search<Float16>(labels_, job.options, scorer, scratch).run(emission, start);
        }
        return Search<Float64>(labels_, job.options, scorer, scratch).run(emission, start);
    }

    std::unique_ptr<Scratch> take() {
        const std::lock_guard lock(idling_);
        if (idle_.empty()) return std::make_unique<Scratch>();
        std::unique_ptr<Scratch> scratch = std::move(idle_.back());
        idle_.pop_back();
        return scratch;
    }
    void give_back(std::unique_ptr<Scratch> scratch) {
        const std::lock_guard lock(idling_);
        idle_.push_back(std::move(scratch));
    }

    Labels labels_;
    std::mutex idling_;
    std::vector<std::unique_ptr<Scratch>> idle_;
};

// Whether the mean of the frames' sums is so near 1 that NumPy must say whether it is 1: see text/beam.py.
template <class T, class F>
bool sums_near_one(const T *values, std::size_t frames, std::size_t labels, double precision, F read) {
    double sums[4] = {}, sizes[4] = {};  // side by side, in vector code
    std::size_t i = 0;
    for (; i + 4 <= frames * labels; i += 4) {
        for (int k = 0; k < 4; ++k) {
            sums[k] += read(values[i + k]);
            sizes[k] += std::abs(read(values[i + k]));
        }
    }
    for (; i < frames * labels; ++i) {
        sums[0] += read(values[i]);
        sizes[0] += std::abs(read(values[i]));
    }
    const double sum = (sums[0] + sums[1]) + (sums[2] + sums[3]), size = (sizes[0] + sizes[1]) + (sizes[2] + sizes[3]);
    const double mean = sum / static_cast<double>(frames);
    return std::abs(mean - 1) <= 0.01 + precision * size;
}

bool may_be_probabilities(const Array &array) {
    const std::size_t frames = array.shape(0), labels = array.shape(1);
    if (frames == 0) return false;
    if (array.dtype() == nb::dtype<float>()) {
        return sums_near_one(static_cast<const float *>(array.data()), frames, labels, 1e-6, [](float x) { return double(x); });
    }
    if (array.dtype() == nb::dtype<double>()) {
        return sums_near_one(static_cast<const double *>(array.data()), frames, labels, 1e-15, [](double x) { return x; });
    }
    return true;
}

}  // namespace
}  // namespace w2v

NB_MODULE(_beam, module) {
    using namespace w2v;
    module.doc() = "CTC beam search and n-gram models; use w2v_ray.text.";
    bind_align(module);
    w2v::bind_ngram(module);

    nb::class_<Trie>(module, "Trie")
        .def(
            "__init__",
            [](Trie *trie, nb::iterable words) {
                std::vector<nb::object> kept;
                std::vector<std::string_view> views;
                for (nb::handle word : words) {
                    if (!PyUnicode_Check(word.ptr())) throw nb::type_error("words are expected to be strings");
                    kept.push_back(nb::steal(PyUnicode_AsEncodedString(word.ptr(), "utf-8", "surrogateescape")));
                    if (!kept.back().is_valid()) throw nb::python_error();
                    views.emplace_back(PyBytes_AS_STRING(kept.back().ptr()),
                                       static_cast<std::size_t>(PyBytes_GET_SIZE(kept.back().ptr())));
                }
                new (trie) Trie(std::move(views));
            },
            "words"_a)
        .def_static(
            "of_model",
            [](const NgramModel &model) {
                std::vector<std::string_view> words;
                model.for_each_word([&](std::string_view word, NgramModel::Word) { words.push_back(word); });
                return std::make_unique<Trie>(std::move(words));
            },
            "model"_a)
        .def("__reduce__",
             [](nb::handle self) { return nb::make_tuple(nb::type<Trie>(), nb::make_tuple(self.attr("words")())); })
        .def("__len__", &Trie::num_words)
        .def("__contains__",
             [](const Trie &trie, nb::str word) { return trie.is_word(trie.step(kRoot, utf8(word))); })
        .def("words", [](const Trie &trie) {
            nb::list words;
            trie.for_each_word([&](const std::string &word) { words.append(to_python(word)); });
            return words;
        });

    nb::class_<BeamSearch>(module, "BeamSearch")
        .def(nb::init<const std::vector<std::string> &, bool>(), "labels"_a, "is_bpe"_a)
        .def("search", &BeamSearch::search, "arrays"_a, nb::kw_only(), "are_probabilities"_a, "are_log_probs"_a,
             "model"_a.none(), "unigrams"_a.none(), "alpha"_a, "beta"_a, "unk_score_offset"_a, "score_boundary"_a,
             "beam_width"_a, "beam_prune_logp"_a, "token_min_logp"_a, "prune_history"_a, "hotwords"_a.none(),
             "hotword_weight"_a, "start_state"_a.none(), "n_best"_a, "with_pieces"_a, "num_threads"_a);

    module.def("may_be_probabilities", &may_be_probabilities, "array"_a);
    module.def(
        "set_order",
        [](std::vector<Index> columns, Index best) {
            SetOrder()(columns, best);
            return columns;
        },
        "columns"_a, "best"_a);
}
