#include "instance/life.hpp"

#include "instance/migration/handover.hpp"

#include <algorithm>

namespace vtpmd::instance {

namespace {

constexpr std::size_t powers = 5;
constexpr std::size_t events = 13;
constexpr std::optional<Power> no = std::nullopt; // refused

/// The table of the header: rows are events, columns powers.
constexpr std::array<std::array<std::optional<Power>, powers>, events> next_power = {{
    /* startup */ {no, Power::started, Power::started, Power::started, Power::started},
    /* shutdown */ {no, Power::shut_down, Power::shut_down, Power::shut_down, Power::shut_down},
    /* command */ {no, Power::on, Power::started, Power::started, Power::started},
    /* measurement */ {no, Power::on, Power::started, Power::started, Power::started},
    /* look */ {no, Power::on, Power::started, Power::shut_down, Power::stored},
    /* operator_quote */ {no, Power::on, Power::started, no, no},
    /* store */ {no, Power::stored, Power::stored, Power::stored, Power::stored},
    /* give */ {no, Power::on, Power::started, Power::shut_down, Power::stored},
    /* set */ {Power::off, no, no, no, no},
    /* resize */ {Power::off, no, no, no, no},
    /* init */ {Power::on, Power::on, Power::on, Power::on, Power::on},
    /* stop */ {Power::off, Power::off, Power::off, Power::off, Power::off},
    /* take */ {Power::off, Power::off, Power::off, Power::off, Power::off},
}};

constexpr const std::optional<Power>& after(Power power, Event event) {
    return next_power[static_cast<std::size_t>(event)][static_cast<std::size_t>(power)];
}

/// Whether it counts as "something has happened since".
constexpr bool changes(Event event) {
    switch (event) {
    case Event::startup:
    case Event::shutdown:
    case Event::command:
    case Event::measurement:
    case Event::store:
    case Event::init:
        return true;
    default:
        return false;
    }
}

} // namespace

std::optional<GivenOut> Life::given_out() const {
    if (!given_[0] || !given_[1] || !given_[2]) {
        return std::nullopt;
    }
    return GivenOut{.digests = {*given_[0], *given_[1], *given_[2]},
                    .power = power_ == Power::off ? given_out_of_ : power_};
}

bool Life::anything_given_out() const noexcept {
    return std::ranges::any_of(given_, [](const auto& blob) { return blob.has_value(); });
}

Result<void> Life::may(Event event) const {
    if (owner_ == Owner::elsewhere && event != Event::take && event != Event::stop) {
        return make_error(Errc::tombstone, "another host has this vTPM");
    }
    if (event == Event::operator_quote && (!after(power_, event) || anything_given_out())) {
        return make_error(Errc::unavailable, "its TPM {}; ask again when its guest runs",
                          power_ == Power::off         ? "is powered off"
                          : power_ == Power::shut_down ? "was shut down by its guest"
                                                       : "was stored, for its guest to be suspended or moved");
    }
    if (!after(power_, event)) {
        return power_ == Power::off ? make_error(Errc::unsupported, "the TPM is powered off")
                                    : make_error(Errc::unsupported, "only while the TPM is powered off");
    }
    return {};
}

void Life::changed() noexcept {
    given_ = {};
    given_out_of_ = Power::on;
}

void Life::happened(Event event) {
    const auto next = after(power_, event);
    if (event == Event::stop || event == Event::take) {
        auto given = given_out();
        changed(); // half of a state is of no use
        if (given && event == Event::stop) {
            remember(*given);
        }
    } else if (changes(event)) {
        changed();
    }
    if (event == Event::init) {
        setter_ = {};
    }
    power_ = next.value_or(power_);
}

Ending Life::ending(bool cycle) const {
    if (power_ == Power::off) {
        return Ending::none;
    }
    if (!cycle && given_out()) {
        return Ending::keep_given;
    }
    return power_ == Power::started ? Ending::orderly : Ending::none;
}

void Life::gave(std::uint32_t type, const store::Digest& digest, bool no_saved_state) {
    given_[type - 1] = digest;
    if (no_saved_state) {
        given_[2] = store::sha256({});
    }
}

void Life::remember(GivenOut given) {
    std::ranges::copy(given.digests, given_.begin());
    given_out_of_ = given.power;
}

void Life::resumed(Origin origin, Power given_out_of) noexcept {
    switch (origin) {
    case Origin::own: // stored registers
        power_ = Power::started;
        break;
    case Origin::given_out:
        power_ = given_out_of == Power::stored ? Power::started : given_out_of;
        break;
    case Origin::snapshot:
    case Origin::other_host:
        power_ = Power::shut_down;
        break;
    }
}

Result<void> Life::may_set(std::uint32_t type, const store::Digest& digest) const {
    if (auto in_this_state = may(Event::set); !in_this_state) {
        return in_this_state;
    }
    if (type == 1 && digest == store::sha256({})) {
        return make_error(Errc::usage, "an empty permanent state"); // it would make a fresh TPM
    }
    const auto given = given_out();
    if (owner_ != Owner::here || allow_rollback_ || (given && given->digests[type - 1] == digest)) {
        return {};
    }
    return make_error(
        Errc::permission,
        "a state from outside was refused: it would put the TPM back to what it was. What it gave out last "
        "may come back once, if it has done nothing since; --rollback=allow lets snapshots do that");
}

bool Life::set(guest::ControlPeer peer, std::uint32_t type, const store::Digest& digest) {
    const bool begins = setter_ != peer;
    if (begins) {
        setter_ = peer;
        set_.fill(store::sha256({}));
    }
    set_[type - 1] = digest;
    return begins;
}

bool Life::gone(guest::ControlPeer peer) {
    if (!has_set(peer)) {
        return false;
    }
    setter_ = {};
    return true;
}

Result<Origin> Life::origin(guest::ControlPeer peer) const {
    if (auto mine = may(Event::init); !mine) {
        return mine.error();
    }
    if (!has_set(peer)) {
        if (owner_ == Owner::expected) {
            return make_error(Errc::permission, "--incoming: its state has not come from the other host yet");
        }
        return Origin::own;
    }
    if (set_[0] == store::sha256({})) {
        return make_error(Errc::usage, "registers or a saved state were set, and no permanent state");
    }
    if (owner_ != Owner::here) {
        return Origin::other_host;
    }
    if (const auto given = given_out(); given && given->digests == set_) {
        return Origin::given_out;
    }
    if (allow_rollback_) {
        return Origin::snapshot;
    }
    return make_error(Errc::permission,
                      "the state that was set is not the whole of what this TPM gave out last: it was refused");
}

Result<bool> Life::may_take(const store::Digest& token) const {
    if (token_) {
        return *token_ == token ? Result<bool>(false)
                                : make_error(Errc::permission, "this vTPM was handed over with another state");
    }
    const auto given = given_out();
    if (owner_ != Owner::here || !given || handover_token(given->digests) != token) {
        return make_error(Errc::permission, "this vTPM has gone on since it gave out that state, or never gave it out");
    }
    return true;
}

void Life::taken(const store::Digest& token) {
    token_ = token;
    owner_ = Owner::elsewhere;
    happened(Event::take);
}

} // namespace vtpmd::instance
