// What an instance's TPM has been through, as one machine: its power, what of its state was given out, what state came from outside
// and over which connection, and whose it is. Pure: it is told what happens, and says what is allowed and what follows; the instance
// does it. Every way in is an Event; `changed()` alone says what "something has run on the TPM" undoes.
//
//   Power       the TPM                                                     an end of its power
//   off         has none                                                    -
//   on          has power, and nobody has sent TPM2_Startup                 nothing to shut down
//   started     is in use                                                   orderly: TPM2_Shutdown
//   shut_down   was sent TPM2_Shutdown or TPM_SaveState, and nothing since  nothing: in the order that its guest chose
//   stored      had its registers stored (STORE_VOLATILE), nothing since    nothing: INIT goes on from those registers
//
// Whole state given out (GET_STATEBLOB) and nothing since, as `virsh save` and a migration do: the end keeps what was given out, to know
// it again. It may come back once. Any other way to go on shuts the TPM of those registers down in order first.
//
//   Event            off      on        started    shut_down  stored     what was given out   what came
//   startup          refused  started   started    started    started    forgotten            -
//   shutdown         refused  shut_down shut_down  shut_down  shut_down  forgotten            -
//   command          refused  on        started    started    started    forgotten            -
//   measurement      refused  on        started    started    started    forgotten            -
//   look             refused  on        started    shut_down  stored     stays                -
//   operator_quote   refused  on        started    refused    refused    refused if any       -
//   store            refused  stored    stored     stored     stored     forgotten            -
//   give             refused  on        started    shut_down  stored     added to             -
//   set              off      refused   refused    refused    refused    stays                added to
//   resize           off      refused   refused    refused    refused    stays                -
//   init             on       on        on         on         on         forgotten            used, or dropped
//   stop             off      off       off        off        off        stays                -
//   take             off      off       off        off        off        must be all of it    -
//
// (`resumed` follows an init that brought registers back: on -> started, or as they were given out.) What cannot be told from here is not in the table: an INIT
// that fails changes nothing, and leaves the power off.
//
//   Owner         the vTPM                                                                  power on     set
//   here          is this host's                                                            yes          what was given out last; all, if allowed
//   expected      comes from another host (--incoming); nothing has come                    with a set   yes
//   unconfirmed   has come, and is on the disk; that host has not said that it let go       after that   yes
//   elsewhere     another host has it                                                       no           no
#pragma once

#include "guest/tpm_service.hpp"
#include "store/aead.hpp"
#include "util/result.hpp"

#include <array>
#include <optional>

namespace vtpmd::instance {

enum class Power : std::uint8_t { off, on, started, shut_down, stored };
enum class Owner : std::uint8_t { here, expected, unconfirmed, elsewhere };
enum class Event : std::uint8_t {
    startup,        ///< TPM2_Startup or TPM_Startup that the TPM took
    shutdown,       ///< TPM2_Shutdown or TPM_SaveState that it took
    command,        ///< any other command, whatever the TPM said to it; a quote for the guest
    measurement,    ///< HASH_START, HASH_DATA, HASH_END, RESET_TPMESTABLISHED
    look,           ///< GET_TPMESTABLISHED and whatever else only tells
    operator_quote, ///< for the host's operator, behind the guest's back
    store,          ///< STORE_VOLATILE
    give,           ///< GET_STATEBLOB
    set,            ///< SET_STATEBLOB
    resize,         ///< SET_BUFFERSIZE with a size
    init,           ///< INIT: a power cycle, or power after none
    stop,           ///< STOP, the device model is gone, the instance ends
    take,           ///< the handover: another host asks for the vTPM
};

/// SHA-256 of the blobs of type 1, 2 and 3: permanent, volatile, saved state.
using BlobDigests = std::array<store::Digest, 3>;

/// What was given out last, and may come back once.
struct GivenOut {
    BlobDigests digests{};
    /// The power that it was given out of, on to stored. Started: unless this state comes back, its registers are shut down in order
    /// before the TPM starts anew.
    Power power = Power::on;
    friend bool operator==(const GivenOut&, const GivenOut&) = default;
};

/// What the end of a running TPM's power takes.
enum class Ending : std::uint8_t {
    none,       ///< nothing more than what is stored already
    orderly,    ///< TPM2_Shutdown, made durable
    keep_given, ///< what was given out is remembered on the disk, with the registers if they were in use
};

/// Where a state that INIT is to use comes from.
enum class Origin : std::uint8_t {
    own,        ///< nothing was set
    given_out,  ///< this TPM's own, as it was given out last
    snapshot,   ///< whatever it is, the operator allows it
    other_host, ///< --incoming
};

class Life {
  public:
    explicit Life(bool allow_rollback)
        : allow_rollback_(allow_rollback) {}

    [[nodiscard]] Power power() const noexcept { return power_; }
    [[nodiscard]] Owner owner() const noexcept { return owner_; }
    /// All that a restore needs was given out, and nothing has happened since.
    [[nodiscard]] std::optional<GivenOut> given_out() const;
    [[nodiscard]] bool anything_given_out() const noexcept;

    /// Whether the table allows it. Errc::unsupported: not in this run state; unavailable: not now (an operator's quote); tombstone:
    /// another host has this vTPM.
    [[nodiscard]] Result<void> may(Event event) const;
    /// It happened.
    void happened(Event event);
    /// An INIT brought registers back: the TPM is where they were taken. Registers of another host's or a snapshot: nobody here knows
    /// whether their guest had shut the TPM down to sleep, so it counts as shut down until something runs.
    void resumed(Origin origin, Power given_out_of) noexcept;
    /// The power is gone without an end (the TPM could not be started, or is not to run here).
    void lost_power() noexcept { power_ = Power::off; }

    /// What a power-off now takes; `cycle`: by an INIT of the running TPM, whose guest goes on, so that nobody comes back for what
    /// was given out.
    [[nodiscard]] Ending ending(bool cycle) const;

    /// GET_STATEBLOB of type 1 to 3. `no_saved_state`: there is none, so that nobody has to ask for it.
    void gave(std::uint32_t type, const store::Digest& digest, bool no_saved_state);
    [[nodiscard]] bool gave(std::uint32_t type) const noexcept { return given_[type - 1].has_value(); }
    /// As the disk remembers it.
    void remember(GivenOut given);

    /// SET_STATEBLOB over a connection. Errc::permission: it would put the TPM back to what it was; tombstone; usage: an empty
    /// permanent state.
    [[nodiscard]] Result<void> may_set(std::uint32_t type, const store::Digest& digest) const;
    /// Another connection's state is forgotten: there is one restore at a time. True: this is the first blob of a new one.
    bool set(guest::ControlPeer peer, std::uint32_t type, const store::Digest& digest);
    [[nodiscard]] bool has_set(guest::ControlPeer peer) const noexcept {
        return setter_ != guest::ControlPeer{} && setter_ == peer;
    }
    /// A connection has ended, or what it set is used. True: what it set is to be forgotten.
    bool gone(guest::ControlPeer peer);
    /// What an INIT over this connection would use. Errc::permission: not the whole of what was given out last, or what the TPM has
    /// gone on from since; tombstone; permission: --incoming, and nothing has come.
    [[nodiscard]] Result<Origin> origin(guest::ControlPeer peer) const;
    /// Of the blobs that were set; those that were not are empty ones.
    [[nodiscard]] const BlobDigests& set_digests() const noexcept { return set_; }

    /// From the command line and the disk, before anything else.
    void expect() noexcept { owner_ = Owner::expected; }
    void unconfirmed() noexcept { owner_ = Owner::unconfirmed; }
    /// The other host has let go.
    void confirmed() noexcept { owner_ = Owner::here; }

    /// The handover. True: it may be let go of; false: it is that host's already, by the same token. Errc::permission otherwise.
    [[nodiscard]] Result<bool> may_take(const store::Digest& token) const;
    void taken(const store::Digest& token);

  private:
    void changed() noexcept;

    const bool allow_rollback_;
    Power power_ = Power::off;
    Owner owner_ = Owner::here;
    std::array<std::optional<store::Digest>, 3> given_{};
    Power given_out_of_ = Power::on; ///< while the power is off
    guest::ControlPeer setter_{};    ///< whose set_ is; nobody's: nothing was set
    BlobDigests set_{};
    std::optional<store::Digest> token_; ///< that the host showed which has it now
};

} // namespace vtpmd::instance
