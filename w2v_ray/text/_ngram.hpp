// An n-gram language model as an automaton: read from ARPA, written to and mapped from a flat file.
//
// The model is one block of memory with the layout of the flat file, whether it was just read from ARPA or is
// mapped. A state is the longest context that can still matter: an n-gram that is the context of a longer one, or
// whose backoff is not zero. An arc leads from (state, word) to the log10 probability and the next state. All
// arcs are in one table, ordered by a hash that loses nothing, so a search ends as soon as it passes the place of
// its key. Probabilities and backoffs are summed in float32 in KenLM's order, and its rules for what an ARPA
// file means are kept, so that scores are equal to the last bit and states are equal where KenLM's are.
#pragma once

#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace w2v {

constexpr unsigned kMaxOrder = 16;

// What is wrong with the bytes of a model. Python sees a ValueError.
class ModelError : public std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// A system call that failed on a file. Python sees an OSError.
class FileError : public std::runtime_error {
 public:
    FileError(int error, std::string path) : std::runtime_error(path), error(error), path(std::move(path)) {}
    int error;
    std::string path;
};

namespace detail {

using Word = std::uint32_t;
using Node = std::uint32_t;

constexpr Word kUnk = 0;
constexpr Node kNull = 0;   // the state without context
constexpr Node kBegin = 1;  // the state after <s>, where <s> is the context of nothing

inline std::uint64_t mix(std::uint64_t key) {
    // Every step can be undone, so two keys never have one hash; 0 stays 0.
    key ^= key >> 32;
    key *= 0x9E3779B97F4A7C15ull;
    key ^= key >> 29;
    key *= 0xBF58476D1CE4E5B9ull;
    key ^= key >> 32;
    return key;
}

// The one key that hashes to ~0, the mark of an empty slot, is (~0, ~0), which no arc has.
inline std::uint64_t arc_hash(Node context, Word word) {
    return ~mix(~(std::uint64_t(context) << 32 | word));
}

inline std::uint64_t scaled(std::uint64_t hash, std::uint64_t size) {
    return std::uint64_t((static_cast<unsigned __int128>(hash) * size) >> 64);
}

inline std::uint64_t bytes_hash(const void *bytes, std::size_t size, std::uint64_t seed = 0) {
    const char *at = static_cast<const char *>(bytes);
    std::uint64_t hash = seed ^ mix(size + 1);
    std::uint64_t piece;
    for (; size >= 8; size -= 8, at += 8) {
        std::memcpy(&piece, at, 8);
        hash = mix(hash ^ piece) + 0x2545F4914F6CDD1Dull;
    }
    piece = 0;
    if (size) std::memcpy(&piece, at, size);
    return mix(hash ^ piece);
}

// KenLM's mark: a backoff of -0 belongs to an n-gram that is the context of nothing.
inline bool extends(float backoff) { return backoff != 0.0f || !std::signbit(backoff); }
inline void mark_extends(float &backoff) {
    if (backoff == 0.0f) backoff = 0.0f;
}

struct Slot {
    std::uint64_t hash;
    float prob;
    Node next;
};
struct Context {
    float backoff;
    Node suffix;
};
struct Unigram {
    float prob;
    Node next;
};

constexpr char kMagic[8] = {'\x93', 'W', '2', 'V', 'L', 'M', '\r', '\n'};
constexpr std::uint32_t kVersion = 2;
constexpr std::uint32_t kEndianMark = 0x01020304;

struct Header {
    char magic[8];
    std::uint32_t version;
    std::uint32_t endian_mark;
    std::uint32_t order;
    Word begin_word;
    Word end_word;
    Node begin_state;
    std::uint64_t num_ngrams[kMaxOrder];
    std::uint64_t num_slots;
    std::uint64_t capacity;  // hashes are scaled to [0, capacity); the slots behind it take what is pushed there
    std::uint64_t num_contexts;
    std::uint64_t num_words;  // <unk> included
    std::uint64_t num_buckets;
    std::uint64_t num_letters;
    std::uint64_t file_size;
    double largest;  // no word after any state has a higher log10 probability
    std::uint64_t body_checksum;
    std::uint64_t header_checksum;  // of all before it
};
static_assert(sizeof(Header) == 240 && sizeof(Slot) == 16 && sizeof(Context) == 8 && sizeof(Unigram) == 8);

inline std::uint64_t header_checksum(const Header &header) {
    return bytes_hash(&header, offsetof(Header, header_checksum));
}

// Zeroed memory of a model. A score looks up a few places anywhere in it, so a large one asks for large pages:
// with small ones most of a first look is spent on finding the page.
struct FreeBlock {
    void operator()(std::uint64_t *block) const noexcept { std::free(block); }
};
using Block = std::unique_ptr<std::uint64_t[], FreeBlock>;

inline Block new_block(std::size_t words) {
    constexpr std::size_t kPage = std::size_t(1) << 21;
    const std::size_t size = std::max<std::size_t>(words, 1) * sizeof(std::uint64_t);
    const std::size_t unit = size < kPage ? alignof(std::max_align_t) : kPage;
    void *block = std::aligned_alloc(unit, (size + unit - 1) / unit * unit);
    if (!block) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    if (unit == kPage) madvise(block, size, MADV_HUGEPAGE);  // what refuses it gives small ones
#endif
    std::memset(block, 0, size);
    return Block(static_cast<std::uint64_t *>(block));
}

// Where each part of the block begins.
struct Layout {
    std::uint64_t slots, contexts, unigrams, offsets, buckets, letters, end;
};

inline Layout layout(const Header &header) {
    Layout at{};
    std::uint64_t position = sizeof(Header);
    const auto place = [&position](std::uint64_t count, std::uint64_t size) {
        if (count > (std::uint64_t(1) << 56) / size) throw ModelError("its header gives impossible sizes");
        const std::uint64_t start = position;
        position += (count * size + 7) / 8 * 8;
        return start;
    };
    at.slots = place(header.num_slots, sizeof(Slot));
    at.contexts = place(header.num_contexts, sizeof(Context));
    at.unigrams = place(header.num_words, sizeof(Unigram));
    at.offsets = place(header.num_words + 1, sizeof(std::uint32_t));
    at.buckets = place(header.num_buckets, sizeof(std::uint64_t));
    at.letters = place(header.num_letters, 1);
    at.end = position;
    return at;
}

// A word or line of a file as it can stand in an error message: bytes that are not printable as \xNN, cut short.
inline std::string quoted(std::string_view text) {
    constexpr std::size_t kLongest = 60;
    std::string out = "\"";
    for (const char letter : text.substr(0, kLongest)) {
        const auto byte = static_cast<unsigned char>(letter);
        if (byte >= 0x20 && byte < 0x7f) {
            out += letter;
        } else {
            char escaped[5];
            std::snprintf(escaped, sizeof escaped, "\\x%02x", byte);
            out += escaped;
        }
    }
    return out + (text.size() > kLongest ? "...\"" : "\"");
}

}  // namespace detail

// Immutable: any number of threads may read it.
class NgramModel {
 public:
    using Word = std::uint32_t;   // 0 is <unk>
    using State = std::uint64_t;  // opaque; from begin_state(), null_state() or score()
    struct Scored {
        float log10_prob;
        State next;
        bool known;
    };

    NgramModel(const NgramModel &) = delete;
    NgramModel &operator=(const NgramModel &) = delete;
    ~NgramModel() {
        if (mapping_) munmap(mapping_, size_);
    }

    Word word(std::string_view utf8) const noexcept {
        const std::uint64_t mask = header_->num_buckets - 1;
        const std::uint64_t hash = detail::bytes_hash(utf8.data(), utf8.size());
        std::uint64_t at = hash & mask;
        for (std::uint64_t probes = 0; probes <= mask; ++probes, at = (at + 1) & mask) {
            const std::uint64_t bucket = buckets_[at];
            const auto candidate = static_cast<Word>(bucket);
            if (candidate == detail::kUnk) return detail::kUnk;
            if ((bucket ^ hash) >> 32 == 0 && spelling(candidate) == utf8) return known_word(candidate);
        }
        return detail::kUnk;
    }
    std::string_view spelling(Word word) const noexcept {
        if (word >= header_->num_words) return {};
        const std::uint64_t from = offsets_[word], to = offsets_[word + 1];
        if (from > to || to > header_->num_letters) return {};  // a damaged file
        return {letters_ + from, to - from};
    }

    Word begin_of_sentence() const noexcept { return header_->begin_word; }
    Word end_of_sentence() const noexcept { return header_->end_word; }
    State begin_state() const noexcept { return header_->begin_state; }
    State null_state() const noexcept { return detail::kNull; }
    int order() const noexcept { return static_cast<int>(header_->order); }
    std::uint64_t num_words() const noexcept { return header_->num_words; }
    std::uint64_t num_states() const noexcept { return header_->num_contexts; }
    std::uint64_t num_ngrams(unsigned order) const noexcept { return header_->num_ngrams[order - 1]; }
    std::string_view bytes() const noexcept { return {reinterpret_cast<const char *>(header_), size_}; }
    const std::string &path() const noexcept { return path_; }  // empty unless mapped

    double largest_log10_prob() const noexcept { return header_->largest; }

    // The log10 probability of `word` after `state`; never NaN.
    Scored score(State state, Word word) const noexcept {
        float backoffs[kMaxOrder];
        unsigned depth = 0;
        word = known_word(word);
        detail::Node context = known_context(state);
        detail::Unigram found;
        for (;;) {
            if (context == detail::kNull || depth == header_->order) {
                found = unigrams_[word];
                break;
            }
            if (const detail::Slot *slot = find(context, word)) {
                found = {slot->prob, slot->next};
                break;
            }
            backoffs[depth++] = contexts_[context].backoff;
            context = known_context(contexts_[context].suffix);
        }
        float sum = found.prob;
        while (depth) sum += backoffs[--depth];  // KenLM's order: that of the shortest context first
        if (sum != sum) sum = -std::numeric_limits<float>::infinity();  // only a damaged file has these
        return {sum, known_context(found.next), word != detail::kUnk};
    }

    template <class F>
    void for_each_word(F f) const {
        for (std::uint64_t word = 1; word < header_->num_words; ++word) {
            f(spelling(static_cast<Word>(word)), static_cast<Word>(word));
        }
    }

    // The log10 probability of lines of words as sentences, `</s>` included, and what it is made of.
    struct TextScore {
        double log10_prob = 0, log10_prob_unknown = 0;
        std::uint64_t num_words = 0, num_unknown = 0, num_sentences = 0;
    };
    TextScore score_text(std::string_view text) const noexcept {
        TextScore sum;
        const char *at = text.data(), *const end = at + text.size();
        while (at != end) {
            State state = begin_state();
            bool has_words = false;
            for (; at != end && *at != '\n';) {
                const char *const start = at;
                while (at != end && !is_space(*at)) ++at;
                if (at == start) {
                    ++at;
                    continue;
                }
                const Scored scored = score(state, word({start, std::size_t(at - start)}));
                state = scored.next;
                has_words = true;
                ++sum.num_words;
                sum.log10_prob += scored.log10_prob;
                if (!scored.known) ++sum.num_unknown, sum.log10_prob_unknown += scored.log10_prob;
            }
            if (at != end) ++at;
            if (!has_words) continue;
            ++sum.num_sentences;
            sum.log10_prob += score(state, end_of_sentence()).log10_prob;
        }
        return sum;
    }

    // Whether the body is what was written. Reads all of it.
    bool is_intact() const noexcept {
        return detail::bytes_hash(header_ + 1, size_ - sizeof(detail::Header)) == header_->body_checksum;
    }

    static std::shared_ptr<NgramModel> from_bytes(std::string_view bytes) {
        detail::Block block = detail::new_block(bytes.size() / 8 + 1);
        std::memcpy(block.get(), bytes.data(), bytes.size());
        return from_block(std::move(block), bytes.size());
    }
    static std::shared_ptr<NgramModel> from_block(detail::Block block, std::size_t size) {
        std::shared_ptr<NgramModel> model(new NgramModel);
        model->owned_ = std::move(block);
        model->bind(reinterpret_cast<const char *>(model->owned_.get()), size);
        return model;
    }

    static std::shared_ptr<NgramModel> map(const std::string &path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (file < 0) throw FileError(errno, path);
        struct stat about {};
        if (fstat(file, &about) != 0) {
            const int error = errno;
            ::close(file);
            throw FileError(error, path);
        }
        const auto size = static_cast<std::size_t>(about.st_size);
        if (!S_ISREG(about.st_mode) || size < sizeof(detail::Header)) {
            ::close(file);
            throw ModelError("it is no compiled model: shorter than the header of one");
        }
        void *mapping = mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0);
        const int error = errno;
        ::close(file);
        if (mapping == MAP_FAILED) throw FileError(error, path);
        std::shared_ptr<NgramModel> model(new NgramModel);
        model->mapping_ = mapping;
        model->size_ = size;
        model->path_ = path;
        model->bind(static_cast<const char *>(mapping), size);
        return model;
    }

    // Others see either no file or all of it: the bytes go to a temporary file beside it, which is then renamed.
    void save(const std::string &path) const {
        static std::atomic<unsigned> counter{0};
        const std::string temporary =
            path + ".tmp-" + std::to_string(getpid()) + "-" + std::to_string(counter.fetch_add(1));
        const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file < 0) throw FileError(errno, path);
        const char *from = reinterpret_cast<const char *>(header_);
        std::size_t left = size_;
        int error = 0;
        while (left && !error) {
            const ssize_t written = ::write(file, from, std::min<std::size_t>(left, 1u << 30));
            if (written < 0 && errno != EINTR) error = errno;
            if (written > 0) from += written, left -= static_cast<std::size_t>(written);
        }
        if (!error && fsync(file) != 0) error = errno;
        if (::close(file) != 0 && !error) error = errno;
        if (!error && std::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
        if (error) {
            ::unlink(temporary.c_str());
            throw FileError(error, path);
        }
    }

 private:
    NgramModel() = default;

    // Every index that comes from the file is held inside its part when it is used, so that a damaged file can
    // give wrong scores but never a read elsewhere.
    Word known_word(Word word) const noexcept { return word < header_->num_words ? word : detail::kUnk; }
    detail::Node known_context(State state) const noexcept {
        return state < header_->num_contexts ? static_cast<detail::Node>(state) : detail::kNull;
    }
    static bool is_space(char letter) { return letter == ' ' || (letter >= '\t' && letter <= '\r'); }

    const detail::Slot *find(detail::Node context, Word word) const noexcept {
        const std::uint64_t hash = detail::arc_hash(context, word);
        const detail::Slot *slot = slots_ + detail::scaled(hash, header_->capacity);
        while (slot->hash < hash) ++slot;  // ends at the latest on the last slot, whose hash is ~0
        return slot->hash == hash ? slot : nullptr;
    }

    void bind(const char *bytes, std::size_t size) {
        const auto *header = reinterpret_cast<const detail::Header *>(bytes);
        if (size < sizeof(detail::Header) || std::memcmp(header->magic, detail::kMagic, sizeof detail::kMagic) != 0) {
            throw ModelError("it is no compiled model: its first bytes are not those of one");
        }
        if (header->endian_mark != detail::kEndianMark) {
            throw ModelError("it was compiled on a machine with the other byte order; compile it again on this one");
        }
        if (header->version != detail::kVersion) {
            throw ModelError("it has version " + std::to_string(header->version) + " of the format, and version " +
                             std::to_string(detail::kVersion) + " was expected; compile it again");
        }
        if (header->header_checksum != detail::header_checksum(*header)) {
            throw ModelError("its header is damaged; compile it again");
        }
        const detail::Layout at = detail::layout(*header);
        if (size != header->file_size || size != at.end) {
            throw ModelError("it has " + std::to_string(size) + " bytes, and " + std::to_string(header->file_size) +
                             " were expected; it was cut short: compile or copy it again");
        }
        slots_ = reinterpret_cast<const detail::Slot *>(bytes + at.slots);
        contexts_ = reinterpret_cast<const detail::Context *>(bytes + at.contexts);
        unigrams_ = reinterpret_cast<const detail::Unigram *>(bytes + at.unigrams);
        offsets_ = reinterpret_cast<const std::uint32_t *>(bytes + at.offsets);
        buckets_ = reinterpret_cast<const std::uint64_t *>(bytes + at.buckets);
        letters_ = bytes + at.letters;
        const std::uint64_t buckets = header->num_buckets;
        if (header->order < 1 || header->order > kMaxOrder || header->num_words < 1 || header->num_contexts < 2 ||
            header->num_words > UINT32_MAX || header->num_contexts > UINT32_MAX || header->capacity < 1 ||
            header->num_slots <= header->capacity || buckets < 1 || (buckets & (buckets - 1)) != 0 ||
            header->begin_state >= header->num_contexts || header->begin_word >= header->num_words ||
            header->end_word >= header->num_words || slots_[header->num_slots - 1].hash != UINT64_MAX) {
            throw ModelError("its sizes contradict each other; compile it again");
        }
        header_ = header;
        size_ = size;
    }

    const detail::Header *header_ = nullptr;
    const detail::Slot *slots_ = nullptr;
    const detail::Context *contexts_ = nullptr;
    const detail::Unigram *unigrams_ = nullptr;
    const std::uint32_t *offsets_ = nullptr;
    const std::uint64_t *buckets_ = nullptr;  // the upper half of a word's hash, and the word; 0 where empty
    const char *letters_ = nullptr;
    std::size_t size_ = 0;
    detail::Block owned_;
    void *mapping_ = nullptr;
    std::string path_;
};

// Reads an ARPA file that is pushed into it in blocks of any size.
class NgramBuilder {
 public:
    void feed(const char *bytes, std::size_t size) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (part_ == Part::kFailed) throw ModelError("this builder has failed or finished; make a new one");
        guarded([&] {
            const char *const end = bytes + size;
            while (bytes != end) {
                const auto *newline = static_cast<const char *>(std::memchr(bytes, '\n', std::size_t(end - bytes)));
                const char *const stop = newline ? newline : end;
                if (pending_.size() + std::size_t(stop - bytes) > kLongestLine) {
                    ++line_;
                    fail("is longer than " + std::to_string(kLongestLine) + " bytes: this is no ARPA file");
                }
                if (!newline) {
                    pending_.append(bytes, end);
                    return;
                }
                ++line_;
                if (pending_.empty()) {
                    read_line({bytes, std::size_t(stop - bytes)});
                } else {
                    pending_.append(bytes, stop);
                    read_line(pending_);
                    pending_.clear();
                }
                bytes = newline + 1;
            }
        });
    }

    std::shared_ptr<NgramModel> finish() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (part_ == Part::kFailed) throw ModelError("this builder has failed or finished; make a new one");
        std::shared_ptr<NgramModel> model;
        guarded([&] {
            if (!pending_.empty()) {
                ++line_;
                read_line(pending_);
            }
            if (part_ == Part::kPreamble) {
                throw ModelError("it has no line \\data\\: this is no ARPA file; `w2v-ray lm build` makes one from text");
            }
            if (part_ != Part::kEnd) {
                throw ModelError("it ends after line " + std::to_string(line_) +
                                 " without the line \\end\\: it was cut short");
            }
            model = packed();
        });
        part_ = Part::kFailed;
        pending_ = {};
        buckets_ = {};
        letters_ = {};
        offsets_ = {};
#ifdef __GLIBC__
        malloc_trim(0);  // reading took twice the memory of the model; the allocator would keep it
#endif
        return model;
    }

 private:
    using Word = detail::Word;
    using Node = detail::Node;
    enum class Part { kPreamble, kCounts, kNgrams, kEnd, kFailed };

    static constexpr std::size_t kLongestLine = 1 << 20;
    static constexpr std::uint64_t kLongestPreamble = 1 << 20;
    static constexpr Node kNone = UINT32_MAX;

    // An n-gram of order 1 to the highest but one: what can be a context. Unigrams come first: their node is
    // their word.
    struct Gram {
        float prob;
        float backoff;
        Node suffix;  // without its oldest word; of a unigram kNone
    };
    // (context, word) -> the node of this n-gram, or of its suffix where it is one of the highest order
    struct Arc {
        std::uint64_t key;
        float prob;
        Node node;
    };
    static constexpr std::uint64_t kEmpty = UINT64_MAX;

    template <class F>
    void guarded(F f) {
        try {
            f();
        } catch (...) {
            part_ = Part::kFailed;
            throw;
        }
    }

    [[noreturn]] void fail(const std::string &reason) const {
        throw ModelError("line " + std::to_string(line_) + " " + reason);
    }

    static bool is_space(char letter) { return letter == ' ' || letter == '\t' || letter == '\r'; }

    void read_line(std::string_view line) {
        if (line_ == 1 && line.substr(0, 3) == "\xEF\xBB\xBF") line.remove_prefix(3);
        while (!line.empty() && is_space(line.back())) line.remove_suffix(1);
        if (part_ == Part::kPreamble) {
            preamble_ += line.size() + 1;
            if (preamble_ > kLongestPreamble) {
                throw ModelError("it has no line \\data\\ in its first " + std::to_string(kLongestPreamble) +
                                 " bytes: this is no ARPA file");
            }
            if (line == "\\data\\") part_ = Part::kCounts;
            return;
        }
        if (line.empty()) return;
        if (part_ == Part::kEnd) fail("holds " + detail::quoted(line) + " after \\end\\: nothing may follow it");
        if (line.front() == '\\' && read_heading(line)) return;
        if (part_ == Part::kCounts) {
            read_count(line);
        } else {
            read_ngram(line);
        }
    }

    void read_count(std::string_view line) {
        std::uint64_t order = 0, count = 0;
        const char *end = line.data() + line.size();
        bool good = line.substr(0, 5) == "ngram";
        if (good) {
            const char *at = line.data() + 5;
            const auto number = [&](std::uint64_t &into) {
                while (at != end && is_space(*at)) ++at;
                const auto [stop, error] = std::from_chars(at, end, into);
                good = good && error == std::errc() && stop != at;
                at = stop;
                while (at != end && is_space(*at)) ++at;
            };
            number(order);
            good = good && at != end && *at == '=';
            if (good) ++at;
            if (good) number(count);
            good = good && at == end;
        }
        if (!good) fail("holds " + detail::quoted(line) + ", and a count like \"ngram 1=1000\" was expected");
        if (order != declared_.size() + 1) {
            fail("counts the " + std::to_string(order) + "-grams, and those of order " +
                 std::to_string(declared_.size() + 1) + " were expected");
        }
        if (order > kMaxOrder) fail("asks for order " + std::to_string(order) + ", above " + std::to_string(kMaxOrder));
        declared_.push_back(count);
    }

    bool read_heading(std::string_view line) {
        if (line == "\\end\\") {
            end_section();
            while (order_ < declared_.size()) {
                if (declared_[order_] != 0) {
                    fail("ends the file without the section \\" + std::to_string(order_ + 1) + "-grams:");
                }
                ++order_;
            }
            part_ = Part::kEnd;
            return true;
        }
        unsigned order = 0;
        const auto [stop, error] = std::from_chars(line.data() + 1, line.data() + line.size(), order);
        if (error != std::errc() || std::string_view(stop, std::size_t(line.data() + line.size() - stop)) != "-grams:") {
            if (part_ == Part::kCounts) fail("holds " + detail::quoted(line) + ", and \\1-grams: was expected");
            return false;  // no n-gram begins with a backslash, so the line is refused with its reason there
        }
        end_section();
        if (order <= order_ || order > declared_.size()) {
            fail("begins the " + std::to_string(order) + "-grams, and " +
                 (order_ < declared_.size() ? "those of order " + std::to_string(order_ + 1) : std::string("\\end\\")) +
                 " were expected by the counts at the top");
        }
        while (order_ + 1 < order) {  // the section of an order with no n-grams may be left out
            if (order_ == 0 || declared_[order_] != 0) {
                fail("begins the " + std::to_string(order) + "-grams, and those of order " +
                     std::to_string(order_ + 1) + " were expected");
            }
            ++order_;
        }
        order_ = order;
        seen_ = 0;
        part_ = Part::kNgrams;
        previous_.clear();
        return true;
    }

    void end_section() {
        if (order_ == 0) {
            if (declared_.empty()) fail("comes before any count of n-grams");
            return;
        }
        if (seen_ != declared_[order_ - 1]) {
            fail("ends " + std::to_string(seen_) + " " + std::to_string(order_) + "-grams, and the line \"ngram " +
                 std::to_string(order_) + "=" + std::to_string(declared_[order_ - 1]) +
                 "\" at the top promised another number: correct it, or make the file again");
        }
        if (order_ == 1) end_unigrams();
    }

    void end_unigrams() {
        begin_word_ = lookup("<s>");
        end_word_ = lookup("</s>");
        for (const auto &[word, name] : {std::pair{begin_word_, "<s>"}, std::pair{end_word_, "</s>"}}) {
            if (word == detail::kUnk) {
                fail(std::string("ends 1-grams without ") + name + ": add it there, as every sentence needs it");
            }
        }
    }

    float read_number(std::string_view text, const char *what) const {
        const char *begin = text.data(), *const end = begin + text.size();
        if (begin != end && *begin == '+') ++begin;
        float value = 0;
        auto [stop, error] = std::from_chars(begin, end, value);
        if (error == std::errc::result_out_of_range) {
            // Too large or too small for float32: an infinity or a zero, as a decimal number would round.
            const bool negative = *begin == '-';
            const char *digit = begin + negative;
            const std::string_view all(begin, std::size_t(stop - begin));
            const auto exponent = all.find_first_of("eE");
            const bool small = exponent == std::string_view::npos ? *digit == '0' || *digit == '.'
                                                                  : all.substr(exponent + 1, 1) == "-";
            value = small ? 0.0f : std::numeric_limits<float>::infinity();
            if (negative) value = -value;
            error = std::errc();
        }
        if (error != std::errc() || stop != end || begin == end || value != value) {
            fail("has the " + std::string(what) + " " + detail::quoted(text) + ", and a number was expected");
        }
        return value;
    }

    void read_ngram(std::string_view line) {
        if (order_ == 0) fail("holds " + detail::quoted(line) + ", and \\1-grams: was expected");
        std::array<std::string_view, kMaxOrder + 2> fields;
        std::size_t count = 0;
        const char *at = line.data(), *const end = at + line.size();
        for (;;) {
            while (at != end && is_space(*at)) ++at;
            if (at == end) break;
            const char *const start = at;
            while (at != end && !is_space(*at)) ++at;
            if (count == order_ + 2) {
                ++count;
                break;
            }
            fields[count++] = {start, std::size_t(at - start)};
        }
        if (count != order_ + 1 && count != order_ + 2) {
            fail("holds " + detail::quoted(line) + ", and a log10 probability, " + std::to_string(order_) +
                 (order_ == 1 ? " word" : " words") + " and perhaps a backoff were expected");
        }
        float prob = read_number(fields[0], "log10 probability");
        if (prob > 0) fail("has the log10 probability " + detail::quoted(fields[0]) + ", which is above 0");
        float backoff = -0.0f;
        const bool is_longest = order_ == declared_.size();
        if (count == order_ + 2) {
            backoff = read_number(fields[count - 1], "backoff");
            if (std::isinf(backoff)) fail("has the backoff " + detail::quoted(fields[count - 1]) + ", which is infinite");
            if (is_longest && backoff != 0) {
                fail("gives the backoff " + detail::quoted(fields[count - 1]) + " to an n-gram of the highest order");
            }
            if (backoff == 0) backoff = -0.0f;
        }
        ++seen_;
        if (order_ == 1) {
            add_unigram(fields[1], -std::fabs(prob), backoff);
        } else {
            std::array<Word, kMaxOrder> words;
            for (unsigned i = 0; i < order_; ++i) {
                words[i] = lookup(fields[i + 1]);
                if (words[i] == detail::kUnk && !is_unk(fields[i + 1])) {
                    fail("holds the word " + detail::quoted(fields[i + 1]) + ", which is not among the 1-grams");
                }
            }
            add_ngram(words.data(), -std::fabs(prob), backoff, is_longest);
        }
    }

    static bool is_unk(std::string_view word) { return word == "<unk>" || word == "<UNK>"; }

    Word lookup(std::string_view word) const {
        if (buckets_.empty()) return detail::kUnk;
        const std::size_t mask = buckets_.size() - 1;
        const std::uint64_t hash = detail::bytes_hash(word.data(), word.size());
        for (std::size_t at = hash & mask;; at = (at + 1) & mask) {
            const auto found = static_cast<Word>(buckets_[at]);
            if (found == detail::kUnk) return found;
            if ((buckets_[at] ^ hash) >> 32 == 0 && spelling(found) == word) return found;
        }
    }
    std::string_view spelling(Word word) const {
        return {letters_.data() + offsets_[word], offsets_[word + 1] - offsets_[word]};
    }

    void bucket(Word word) {
        const std::size_t mask = buckets_.size() - 1;
        const std::string_view text = spelling(word);
        const std::uint64_t hash = detail::bytes_hash(text.data(), text.size());
        std::size_t at = hash & mask;
        while (buckets_[at] != 0) at = (at + 1) & mask;
        buckets_[at] = hash >> 32 << 32 | word;
    }

    void add_unigram(std::string_view word, float prob, float backoff) {
        if (is_unk(word)) {
            has_unk_ = true;
            grams_[detail::kUnk] = {prob, backoff, kNone};
            return;
        }
        if (lookup(word) != detail::kUnk) return;  // the first of two equal n-grams counts, as in KenLM
        if (grams_.size() >= kNone - 2 || letters_.size() + word.size() > UINT32_MAX) fail("has one word too many");
        grams_.push_back({prob, backoff, kNone});
        letters_.append(word);
        offsets_.push_back(static_cast<std::uint32_t>(letters_.size()));
        if (buckets_.size() < grams_.size() * 2) {
            buckets_.assign(std::max<std::size_t>(16, buckets_.size() * 2), 0);
            for (Word each = 1; each < grams_.size(); ++each) bucket(each);
        } else {
            bucket(static_cast<Word>(grams_.size() - 1));
        }
    }

    // The place of an arc in the table: it, or the empty slot where it would go.
    std::size_t place(std::uint64_t key) const {
        const std::size_t mask = arcs_.size() - 1;
        std::size_t at = detail::mix(key) & mask;
        while (arcs_[at].key != kEmpty && arcs_[at].key != key) at = (at + 1) & mask;
        return at;
    }
    Node follow(Node context, Word word) const {
        if (arcs_.empty()) return kNone;
        const Arc &arc = arcs_[place(std::uint64_t(context) << 32 | word)];
        return arc.key == kEmpty ? kNone : arc.node;
    }
    // The node of an n-gram that may be a context, or kNone.
    Node find(const Word *begin, const Word *end) const {
        Node node = *begin;
        while (++begin != end && node != kNone) node = follow(node, *begin);
        return node;
    }
    void add_arc(Node context, Word word, float prob, Node node) {
        if ((num_arcs_ + 1) * 10 > arcs_.size() * 7) {
            std::vector<Arc> old(std::max<std::size_t>(64, arcs_.size() * 2), Arc{kEmpty, 0, 0});
            old.swap(arcs_);
            for (const Arc &arc : old) {
                if (arc.key != kEmpty) arcs_[place(arc.key)] = arc;
            }
        }
        const std::uint64_t key = std::uint64_t(context) << 32 | word;
        Arc &arc = arcs_[place(key)];
        if (arc.key != kEmpty) return;  // the first of two equal n-grams counts, as in KenLM
        arc = {key, prob, node};
        ++num_arcs_;
    }
    Node add_gram(float prob, float backoff, Node suffix) {
        if (grams_.size() >= kNone - 2) fail("has one n-gram too many");
        grams_.push_back({prob, backoff, suffix});
        return static_cast<Node>(grams_.size() - 1);
    }

    void add_ngram(const Word *words, float prob, float backoff, bool is_longest) {
        const Word *const end = words + order_;
        const Word *const last = end - 1;
        const Node suffix = order_ == 2 ? Node(*last) : find(words + 1, end);
        const Node lower = suffix != kNone ? suffix : add_missing_suffixes(words);
        Node context;
        if (previous_.size() == order_ - 1 && std::equal(words, last, previous_.begin())) {
            context = previous_context_;
        } else {
            context = find(words, last);
            if (context == kNone) fail_for_context(words);
            previous_.assign(words, last);
            previous_context_ = context;
        }
        detail::mark_extends(grams_[context].backoff);
        if (is_longest) {
            add_arc(context, *last, prob, lower);
        } else if (follow(context, *last) == kNone) {
            add_arc(context, *last, prob, add_gram(prob, backoff, lower));
        }
    }

    // Some toolkits prune "b c" and keep "a b c". As in KenLM, the missing ones take the backed-off probability,
    // which makes their contexts ones that can be extended. Returns the node of the longest.
    Node add_missing_suffixes(const Word *words) {
        const Word *const end = words + order_;
        const Word *const last = end - 1;
        const Word *basis = last;  // the longest suffix that is there
        Node lower = *last;
        for (; basis > words + 1; --basis) {
            const Node longer = find(basis - 1, end);
            if (longer == kNone) break;
            lower = longer;
        }
        float prob = grams_[lower].prob;
        while (--basis > words) {
            const Node context = find(basis, last);
            if (context == kNone) fail_for_context(words);
            detail::mark_extends(grams_[context].backoff);
            prob += grams_[context].backoff;
            const Node added = add_gram(-std::fabs(prob), -0.0f, lower);
            add_arc(context, *last, -std::fabs(prob), added);
            lower = added;
        }
        return lower;
    }

    [[noreturn]] void fail_for_context(const Word *words) const {
        std::string context;
        for (unsigned i = 0; i + 1 < order_; ++i) {
            if (i) context += ' ';
            context += words[i] == detail::kUnk ? std::string_view("<unk>") : spelling(words[i]);
        }
        fail("holds a " + std::to_string(order_) + "-gram whose context " + detail::quoted(context) +
             " is not among the " + std::to_string(order_ - 1) + "-grams");
    }

    // The model as one block, with the nodes that can matter alone.
    std::shared_ptr<NgramModel> packed() {
        if (!has_unk_) grams_[detail::kUnk] = {-100.0f, 0.0f, kNone};  // KenLM's default
        const bool is_unigram_model = declared_.size() == 1;
        std::vector<Node> renumbered(grams_.size());  // the state that a node stands for
        std::vector<detail::Context> contexts(2);
        contexts[detail::kNull] = {0, detail::kNull};
        contexts[detail::kBegin] = {grams_[begin_word_].backoff, detail::kNull};
        for (Node node = 0; node < grams_.size(); ++node) {  // a suffix has a smaller number
            const Gram &gram = grams_[node];
            const Node suffix = gram.suffix == kNone ? detail::kNull : renumbered[gram.suffix];
            renumbered[node] = suffix;
            if (detail::extends(gram.backoff) && !is_unigram_model) {
                renumbered[node] = static_cast<Node>(contexts.size());
                contexts.push_back({gram.backoff, suffix});
            }
        }
        const std::size_t num_words = offsets_.size() - 1;
        std::vector<detail::Unigram> unigrams(num_words);
        for (Word word = 0; word < num_words; ++word) unigrams[word] = {grams_[word].prob, renumbered[word]};
        const Node after_begin = renumbered[begin_word_];
        grams_ = {};

        float largest_prob = -std::numeric_limits<float>::infinity(), largest_backoff = 0;
        for (const auto &unigram : unigrams) largest_prob = std::max(largest_prob, unigram.prob);
        for (const auto &context : contexts) largest_backoff = std::max(largest_backoff, context.backoff);
        std::vector<detail::Slot> arcs;
        arcs.reserve(num_arcs_);
        for (const Arc &arc : arcs_) {
            const auto word = static_cast<Word>(arc.key);
            if (arc.key == kEmpty || (word == detail::kUnk && !has_unk_)) continue;  // KenLM never finds the latter
            const Node context = renumbered[arc.key >> 32];
            arcs.push_back({detail::arc_hash(context, word), arc.prob, renumbered[arc.node]});
            largest_prob = std::max(largest_prob, arc.prob);
        }
        arcs_ = {};
        renumbered = {};
        std::sort(arcs.begin(), arcs.end(), [](const auto &a, const auto &b) { return a.hash < b.hash; });

        detail::Header header{};
        std::memcpy(header.magic, detail::kMagic, sizeof detail::kMagic);
        header.version = detail::kVersion;
        header.endian_mark = detail::kEndianMark;
        header.order = static_cast<std::uint32_t>(declared_.size());
        header.begin_word = begin_word_;
        header.end_word = end_word_;
        header.begin_state = after_begin == detail::kNull ? detail::kBegin : after_begin;
        std::copy(declared_.begin(), declared_.end(), header.num_ngrams);
        header.capacity = arcs.size() + arcs.size() / 4 + 1;
        std::uint64_t past = 0;
        for (const auto &arc : arcs) past = std::max(past, detail::scaled(arc.hash, header.capacity)) + 1;
        header.num_slots = std::max(past, header.capacity) + 1;
        header.num_contexts = contexts.size();
        header.num_words = num_words;
        header.num_buckets = std::max<std::uint64_t>(1, buckets_.size());
        header.num_letters = letters_.size();
        const detail::Layout at = detail::layout(header);
        header.file_size = at.end;
        header.largest = double(largest_prob) + double(largest_backoff) * double(declared_.size() - 1);

        detail::Block block = detail::new_block(at.end / 8);
        char *const bytes = reinterpret_cast<char *>(block.get());
        const auto put = [bytes](std::uint64_t where, const void *what, std::size_t size) {
            if (size) std::memcpy(bytes + where, what, size);
        };
        auto *const slots = reinterpret_cast<detail::Slot *>(bytes + at.slots);
        for (std::uint64_t i = 0; i < header.num_slots; ++i) slots[i].hash = UINT64_MAX;
        past = 0;
        for (const auto &arc : arcs) {
            past = std::max(past, detail::scaled(arc.hash, header.capacity));
            slots[past++] = arc;
        }
        put(at.contexts, contexts.data(), contexts.size() * sizeof contexts[0]);
        put(at.unigrams, unigrams.data(), unigrams.size() * sizeof unigrams[0]);
        put(at.offsets, offsets_.data(), offsets_.size() * sizeof offsets_[0]);
        put(at.buckets, buckets_.data(), buckets_.size() * sizeof buckets_[0]);
        put(at.letters, letters_.data(), letters_.size());
        header.body_checksum = detail::bytes_hash(bytes + sizeof header, at.end - sizeof header);
        header.header_checksum = detail::header_checksum(header);
        put(0, &header, sizeof header);
        return NgramModel::from_block(std::move(block), at.end);
    }

    std::mutex mutex_;
    Part part_ = Part::kPreamble;
    std::string pending_;  // a line whose end has not come yet
    std::uint64_t line_ = 0;
    std::uint64_t preamble_ = 0;
    std::vector<std::uint64_t> declared_;
    unsigned order_ = 0;  // of the section being read
    std::uint64_t seen_ = 0;
    std::vector<Gram> grams_{{-0.0f, 0.0f, kNone}};  // KenLM's values for an <unk> that is never listed
    std::vector<Arc> arcs_;
    std::size_t num_arcs_ = 0;
    bool has_unk_ = false;
    Word begin_word_ = 0, end_word_ = 0;
    std::string letters_ = "<unk>";
    std::vector<std::uint32_t> offsets_{0, 5};
    std::vector<std::uint64_t> buckets_;
    std::vector<Word> previous_;  // the context of the n-gram before this one
    Node previous_context_ = 0;
};

inline void bind_ngram(nanobind::module_ &module) {
    namespace nb = nanobind;
    using namespace nb::literals;

    nb::register_exception_translator([](const std::exception_ptr &pointer, void *) {
        try {
            std::rethrow_exception(pointer);
        } catch (const FileError &error) {
            errno = error.error;
            PyErr_SetFromErrnoWithFilename(PyExc_OSError, error.path.c_str());
        }
    });

    // Words are bytes in the model and str in Python, where bytes that are not UTF-8 are lone surrogates.
    static const auto to_bytes = [](nb::str text) {
        nb::object encoded = nb::steal(PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogateescape"));
        if (!encoded.is_valid()) throw nb::python_error();
        return nb::borrow<nb::bytes>(encoded);
    };
    static const auto to_str = [](std::string_view bytes) {
        nb::object text =
            nb::steal(PyUnicode_DecodeUTF8(bytes.data(), Py_ssize_t(bytes.size()), "surrogateescape"));
        if (!text.is_valid()) throw nb::python_error();
        return nb::borrow<nb::str>(text);
    };
    static const auto to_word = [](const NgramModel &model, nb::str text) {
        const nb::bytes bytes = to_bytes(text);
        return model.word({bytes.c_str(), bytes.size()});
    };
    static const auto to_path = [](nb::object path) {
        PyObject *encoded = nullptr;
        if (!PyUnicode_FSConverter(path.ptr(), &encoded)) throw nb::python_error();
        const nb::bytes bytes = nb::steal<nb::bytes>(encoded);
        return std::string(bytes.c_str(), bytes.size());
    };

    nb::class_<NgramModel>(module, "NgramModel")
        .def_prop_ro("order", &NgramModel::order)
        .def_prop_ro("num_ngrams",
                     [](const NgramModel &model) {
                         std::vector<std::uint64_t> counts;
                         for (int n = 1; n <= model.order(); ++n) counts.push_back(model.num_ngrams(unsigned(n)));
                         return counts;
                     })
        .def_prop_ro("num_states", &NgramModel::num_states)
        .def_prop_ro("nbytes", [](const NgramModel &model) { return model.bytes().size(); })
        .def_prop_ro("path",
                     [](const NgramModel &model) -> nb::object {
                         if (model.path().empty()) return nb::none();
                         return nb::steal(PyUnicode_DecodeFSDefaultAndSize(model.path().data(),
                                                                           Py_ssize_t(model.path().size())));
                     })
        .def_prop_ro("begin_state", &NgramModel::begin_state)
        .def_prop_ro("null_state", &NgramModel::null_state)
        .def("words",
             [](const NgramModel &model) {
                 nb::list words;
                 model.for_each_word([&](std::string_view text, NgramModel::Word) { words.append(to_str(text)); });
                 return words;
             })
        .def("__contains__", [](const NgramModel &model, nb::str word) { return to_word(model, word) != 0; })
        .def(
            "score",
            [](const NgramModel &model, NgramModel::State state, nb::str word) {
                if (state >= model.num_states()) {
                    throw ModelError("state " + std::to_string(state) + " is not one of this model's " +
                                     std::to_string(model.num_states()));
                }
                const auto scored = model.score(state, to_word(model, word));
                return std::pair(scored.log10_prob, scored.next);
            },
            "state"_a, "word"_a)
        .def(
            "score_text",
            [](const NgramModel &model, nb::bytes lines) {
                NgramModel::TextScore sum;
                {
                    nb::gil_scoped_release release;
                    sum = model.score_text({lines.c_str(), lines.size()});
                }
                return nb::make_tuple(sum.log10_prob, sum.num_words, sum.num_sentences, sum.log10_prob_unknown,
                                      sum.num_unknown);
            },
            "lines"_a)
        .def("is_intact", &NgramModel::is_intact, nb::call_guard<nb::gil_scoped_release>())
        .def(
            "save",
            [](const NgramModel &model, nb::object path) {
                const std::string where = to_path(path);
                nb::gil_scoped_release release;
                model.save(where);
            },
            "path"_a)
        .def_static(
            "map", [](nb::object path) { return NgramModel::map(to_path(path)); }, "path"_a)
        .def(nb::new_([](nb::bytes bytes) { return NgramModel::from_bytes({bytes.c_str(), bytes.size()}); }), "bytes"_a)
        .def(nb::new_([](nb::str path) { return NgramModel::map(to_path(path)); }), "path"_a)
        .def("__reduce__", [](nb::handle self) {  // a mapped model travels as its path, any other as its bytes
            const auto &model = nb::cast<const NgramModel &>(self);
            nb::object content = self.attr("path");
            if (content.is_none()) content = nb::bytes(model.bytes().data(), model.bytes().size());
            return nb::make_tuple(nb::type<NgramModel>(), nb::make_tuple(content));
        });

    nb::class_<NgramBuilder>(module, "NgramBuilder")
        .def(nb::init<>())
        .def(
            "feed",
            [](NgramBuilder &builder, nb::bytes block) {
                nb::gil_scoped_release release;
                builder.feed(block.c_str(), block.size());
            },
            "block"_a)
        .def("finish", &NgramBuilder::finish, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace w2v
