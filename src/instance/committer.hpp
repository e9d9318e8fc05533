// Makes what the engine staged durable, in this order: encrypt and write to the image's other slot, offer the key to the
// manager, accept the slot when the manager said its durable yes. Only then may a guest see the answer.
//
// Once a slot is written and its key offered, an error tells nothing about what the manager has on its disk. So that very
// key is offered again, until the manager has said yes, and no slot is written before that ("in doubt"): whichever of the
// two keys the manager turns out to have after a crash, its slot is whole.
#pragma once

#include "engine/engine.hpp"
#include "instance/counters.hpp"
#include "proto/client.hpp"
#include "store/state_image.hpp"

#include <optional>

namespace vtpmd::instance {

class Committer {
  public:
    Committer(Engine& engine, store::StateImage& image, proto::ManagerClient& manager, InstanceCounters& counters)
        : counters_(counters)
        , engine_(engine)
        , image_(image)
        , manager_(manager) {}

    /// True if memory is ahead of the disk, as far as is known.
    [[nodiscard]] bool dirty() const { return in_doubt_.has_value() || engine_.has_staged(); }
    [[nodiscard]] bool in_doubt() const { return in_doubt_.has_value(); }

    /// Returns once nothing is dirty any more; an error leaves it dirty, and the next call goes on where this one failed.
    /// Not to be called twice at a time. May be cancelled at any point.
    Task<Result<void>> settle();

    /// Volatile state to keep beside the rest (empty: none); durable with the next settle(), which then always writes.
    void keep_volatile(SecretBytes state);
    /// Of a state that came from another host: not to be run before that is asked (empty: it may run). As above.
    void keep_unconfirmed(SecretBytes token);
    [[nodiscard]] const SecretBytes& unconfirmed() const { return unconfirmed_; }
    /// What is remembered of the state that was given out last (empty: nothing). As above.
    void keep_given_out(SecretBytes given);
    [[nodiscard]] const SecretBytes& kept_given_out() const { return given_out_; }
    /// Something of a moment that passes with the next command is kept beside the state.
    [[nodiscard]] bool keeps_a_moment() const { return !volatile_.empty() || !given_out_.empty(); }
    void keep_stored_given_out(SecretBytes given) { given_out_ = std::move(given); }
    /// Of what the disk has already.
    void keep_stored_unconfirmed(SecretBytes token) { unconfirmed_ = std::move(token); }
    /// The same, of what the disk has already.
    void keep_stored(SecretBytes state) { volatile_ = std::move(state); }
    [[nodiscard]] const SecretBytes& kept_volatile() const { return volatile_; }

  private:
    Task<Result<void>> write_slot();
    Task<Result<void>> offer_key();

    InstanceCounters& counters_;
    Engine& engine_;
    store::StateImage& image_;
    proto::ManagerClient& manager_;

    std::optional<SecretBytes> in_doubt_; ///< the key of a slot that is written and perhaps not yet the manager's
    SecretBytes volatile_;
    SecretBytes unconfirmed_;
    SecretBytes given_out_;
};

} // namespace vtpmd::instance
