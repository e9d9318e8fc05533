// What the simulated host must be like: of each thing the values that it can have. An acknowledged change leaves one; one whose
// outcome nobody was told leaves two, until a restart shows which it was.
#pragma once

#include "manager/vault/records.hpp"
#include "model_engine.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace vtpmd::sim {

/// An invariant is broken.
struct Violation : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// A value that operations change which may overlap.
template <typename T>
class Possible {
  public:
    explicit Possible(T first)
        : values_{std::move(first)} {}

    /// An operation that may set it to `value` begins.
    void begin(const T& value) {
        overlap_ = overlap_ || in_flight_ > 0;
        ++in_flight_;
        if (!allows(value)) {
            values_.push_back(value);
        }
    }
    void acknowledged(const T& value) {
        if (!overlap_) {
            values_.assign(1, value);
        }
        end();
    }
    void refused(const T& value, bool had_been_possible) {
        if (!overlap_ && !had_been_possible && values_.size() > 1) {
            std::erase(values_, value);
        }
        end();
    }
    void unknown() {
        unknown_ = true;
        end();
    }
    /// It has happened or had no need to: what is seen next is right.
    void either() { end(); }
    [[nodiscard]] bool allows(const T& value) const { return std::ranges::find(values_, value) != values_.end(); }
    [[nodiscard]] bool quiet() const { return in_flight_ == 0; }
    [[nodiscard]] bool certain() const { return values_.size() == 1; }
    [[nodiscard]] const T& value() const { return values_.front(); }
    /// It was seen, by one who sees what a restart would find, or when every outcome is known.
    void seen(const T& value) {
        if (in_flight_ == 0) {
            values_.assign(1, value);
            unknown_ = false;
        }
    }
    [[nodiscard]] bool all_outcomes_known() const { return in_flight_ == 0 && !unknown_; }
    /// A process that had operations in flight is gone.
    void set(const T& value) { values_.assign(1, value); }
    void also(const T& value) {
        if (!allows(value)) {
            values_.push_back(value);
            unknown_ = true;
        }
    }

  private:
    void end() {
        if (--in_flight_ == 0) {
            overlap_ = false;
        }
    }
    std::vector<T> values_;
    unsigned in_flight_ = 0;
    bool overlap_ = false, unknown_ = false;
};

enum class Presence { absent, there, deleted, away };

struct VtpmModel {
    struct Counted {
        std::uint64_t acknowledged = 0; ///< what a guest was shown
        std::uint64_t most = 0;         ///< with all that was asked for and may have happened
    };
    Possible<Presence> presence{Presence::absent};
    Possible<std::uint32_t> group{0}; ///< by its place in the world's list; 0: the store's own
    Possible<std::string> name{std::string()};
    std::optional<std::uint64_t> tpm; ///< the one that was acknowledged
    std::set<std::uint64_t> maybe;    ///< made, and perhaps on the disk
    std::set<std::uint64_t> given_up; ///< reset or deleted: never again
    std::map<std::uint64_t, Counted> counted;
    /// Its images stay, and nothing opens them.
    void gone_if(bool gone) {
        if (gone && tpm) {
            given_up.insert(*tpm);
            tpm.reset();
        }
    }
    bool may_be_reset = false; ///< a reset's outcome is unknown
    bool twinned = false;      ///< the newest image is its second instance's
    bool unclear = false;      ///< or is the other one's, if what that began was kept
    bool lossy = false;        ///< an old copy of the store was taken, within what freshness allows: it may not load
};

struct GroupModel {
    Possible<Presence> presence{Presence::absent};
    Possible<std::uint64_t> sequence{0}; ///< of its list: odd ones approve platform A, even ones A and B
    Bytes ca;                            ///< the CA's certificate, once it was shown
    bool lost = false;                   ///< its key is in a TPM that is gone
};

struct FillModel {
    Possible<Presence> presence{Presence::absent};
    Possible<unsigned> mark{0}; ///< of its last key; 0: none
};

struct RecoveryModel {
    std::string path; ///< its file, which its operator keeps whatever becomes of the key
    std::string id;
    Possible<Presence> presence{Presence::there};
    [[nodiscard]] bool surely(Presence p) const {
        return presence.quiet() && presence.certain() && presence.value() == p;
    }
};

struct Model {
    std::vector<VtpmModel> vtpms;
    std::vector<GroupModel> groups; ///< without the store's own
    std::map<Uuid, FillModel> fill;
    std::vector<RecoveryModel> recovery;
};

} // namespace vtpmd::sim
