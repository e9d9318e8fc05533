// An instance's life (life.hpp): every cell of its tables.
#include "check.hpp"
#include "instance/life.hpp"
#include "instance/migration/handover.hpp"
#include "instance/state/state_blob.hpp"
#include "util/text.hpp"

#include <string_view>

namespace instance_life_test {

using namespace vtpmd;
using namespace vtpmd::instance;
using guest::ControlPeer;

namespace {

const int someone = 0;
const int another = 0;
const ControlPeer peer{.id = &someone};
const ControlPeer other_peer{.id = &another};

store::Digest digest(std::string_view text) { return store::sha256({as_bytes(text)}); }
const BlobDigests one{digest("permanent"), digest("volatile"), store::sha256({})};

constexpr Power all_powers[] = {Power::off, Power::on, Power::started, Power::shut_down, Power::stored};
constexpr const char* power_names[] = {"off", "on", "started", "shut_down", "stored"};

void bring(Life& life, Power power) {
    const std::initializer_list<Event> ways[] = {{},
                                                 {Event::init},
                                                 {Event::init, Event::startup},
                                                 {Event::init, Event::startup, Event::shutdown},
                                                 {Event::init, Event::startup, Event::store}};
    for (Event event : ways[static_cast<std::size_t>(power)]) {
        life.happened(event);
    }
    REQUIRE(life.power() == power);
}

void give_all(Life& life, const BlobDigests& digests = one) {
    if (life.power() == Power::off) {
        life.remember({.digests = digests, .power = Power::started});
        return;
    }
    for (std::uint32_t type = 1; type <= 3; ++type) {
        life.gave(type, digests[type - 1], false);
    }
}

void set_all(Life& life, const BlobDigests& digests, ControlPeer by = peer) {
    for (std::uint32_t type = 1; type <= 3; ++type) {
        (void)life.set(by, type, digests[type - 1]);
    }
}

} // namespace

TEST_SUITE("instance") {
    TEST_CASE("life: every event in every power, with and without a state given out") {
        constexpr auto no = std::string_view{};
        struct Row {
            const char* name;
            Event event;
            std::string_view next[5]; ///< from off, on, started, shut_down, stored; empty: refused
            bool forgets;             ///< what was given out
            bool refused_if_given;
        };
        const Row table[] = {
            {"startup", Event::startup, {no, "started", "started", "started", "started"}, true, false},
            {"shutdown", Event::shutdown, {no, "shut_down", "shut_down", "shut_down", "shut_down"}, true, false},
            {"command", Event::command, {no, "on", "started", "started", "started"}, true, false},
            {"measurement", Event::measurement, {no, "on", "started", "started", "started"}, true, false},
            {"look", Event::look, {no, "on", "started", "shut_down", "stored"}, false, false},
            {"operator_quote", Event::operator_quote, {no, "on", "started", no, no}, false, true},
            {"store", Event::store, {no, "stored", "stored", "stored", "stored"}, true, false},
            {"give", Event::give, {no, "on", "started", "shut_down", "stored"}, false, false},
            {"set", Event::set, {"off", no, no, no, no}, false, false},
            {"resize", Event::resize, {"off", no, no, no, no}, false, false},
            {"init", Event::init, {"on", "on", "on", "on", "on"}, true, false},
            {"stop", Event::stop, {"off", "off", "off", "off", "off"}, false, false},
        };
        CHECK(std::size(table) == 12); // and take, below
        for (const Row& row : table) {
            for (Power power : all_powers) {
                for (bool given : {false, true}) {
                    CAPTURE(row.name);
                    CAPTURE(power_names[static_cast<std::size_t>(power)]);
                    CAPTURE(given);
                    Life life(false);
                    bring(life, power);
                    if (given) {
                        give_all(life);
                    }
                    const std::string_view next = row.next[static_cast<std::size_t>(power)];
                    const bool allowed = !next.empty() && !(given && row.refused_if_given);
                    CHECK(life.may(row.event).has_value() == allowed);
                    if (!allowed) {
                        continue;
                    }
                    life.happened(row.event);
                    CHECK(power_names[static_cast<std::size_t>(life.power())] == next);
                    CHECK(life.given_out().has_value() == (given && !row.forgets));
                }
            }
        }
    }

    TEST_CASE("life: what an end of the power takes") {
        struct Row {
            Power power;
            Ending plain, given, cycle;
        };
        const Row table[] = {
            {Power::off, Ending::none, Ending::none, Ending::none},
            {Power::on, Ending::none, Ending::keep_given, Ending::none},
            {Power::started, Ending::orderly, Ending::keep_given, Ending::orderly},
            {Power::shut_down, Ending::none, Ending::keep_given, Ending::none},
            {Power::stored, Ending::none, Ending::keep_given, Ending::none},
        };
        for (const Row& row : table) {
            CAPTURE(power_names[static_cast<std::size_t>(row.power)]);
            Life life(false);
            bring(life, row.power);
            CHECK(life.ending(false) == row.plain);
            CHECK(life.ending(true) == row.cycle);
            give_all(life);
            CHECK(life.ending(false) == row.given);
            CHECK(life.ending(true) == row.cycle);
        }
    }

    TEST_CASE(
        "life: half of a state is nothing to come back to; a saved state that is not there need not be asked for") {
        Life life(false);
        bring(life, Power::started);
        life.gave(1, one[0], false);
        CHECK(life.anything_given_out());
        CHECK_FALSE(life.given_out());
        CHECK(life.ending(false) == Ending::orderly);
        CHECK_FALSE(life.may(Event::operator_quote));
        life.gave(2, one[1], true);
        REQUIRE(life.given_out());
        CHECK(life.given_out()->digests == one);
        CHECK(life.given_out()->power == Power::started);
        life.happened(Event::stop);
        CHECK(life.given_out()->power == Power::started); // that it was given out of

        Life half(false);
        bring(half, Power::on);
        half.gave(1, one[0], true);
        half.happened(Event::stop);
        CHECK_FALSE(half.anything_given_out());
    }

    TEST_CASE("life: where a power-on with registers leaves the TPM") {
        struct Row {
            Origin origin;
            Power given, after;
        };
        const Row table[] = {
            {Origin::own, Power::started, Power::started},
            {Origin::given_out, Power::on, Power::on},
            {Origin::given_out, Power::started, Power::started},
            {Origin::given_out, Power::shut_down, Power::shut_down},
            {Origin::given_out, Power::stored, Power::started},
            {Origin::snapshot, Power::started, Power::shut_down},
            {Origin::other_host, Power::started, Power::shut_down}, // asleep (S3) for all that is known here
        };
        for (const Row& row : table) {
            Life life(false);
            bring(life, Power::on);
            life.resumed(row.origin, row.given);
            CHECK(life.power() == row.after);
        }
    }

    TEST_CASE("life: which blob may be set: by owner, by what was given out, by what the operator allows") {
        for (bool allow : {false, true}) {
            Life life(allow);
            CHECK(life.may_set(1, one[0]).has_value() == allow); // nothing was given out
            give_all(life);
            CHECK(life.may_set(1, one[0]));
            CHECK(life.may_set(2, one[1]));
            CHECK(life.may_set(3, one[2]));
            CHECK(life.may_set(1, digest("older")).has_value() == allow);
            CHECK(life.may_set(2, one[0]).has_value() == allow); // another type's
            CHECK(life.may_set(1, store::sha256({})).error().code == Errc::usage);
            bring(life, Power::on);
            CHECK(life.may_set(1, one[0]).error().code == Errc::unsupported);
        }
        for (bool unconfirmed : {false, true}) {
            Life life(false);
            unconfirmed ? life.unconfirmed() : life.expect();
            CHECK(life.may_set(1, digest("anything")));
            CHECK(life.may_set(1, store::sha256({})).error().code == Errc::usage);
        }
        Life gone(true);
        gone.taken(digest("token"));
        CHECK(gone.may_set(1, one[0]).error().code == Errc::tombstone);
    }

    TEST_CASE("life: what an INIT starts with: every owner, connection and state") {
        const BlobDigests older{digest("older"), digest("older volatile"), store::sha256({})};
        const BlobDigests mixed{one[0], older[1], store::sha256({})};
        const BlobDigests registers_only{store::sha256({}), one[1], store::sha256({})};
        for (Owner owner : {Owner::here, Owner::expected, Owner::unconfirmed, Owner::elsewhere}) {
            for (bool allow : {false, true}) {
                CAPTURE(static_cast<int>(owner));
                CAPTURE(allow);
                auto life_of = [&](const BlobDigests* set) {
                    Life life(allow);
                    give_all(life);
                    if (owner == Owner::expected) {
                        life.expect();
                    } else if (owner == Owner::unconfirmed) {
                        life.unconfirmed();
                    } else if (owner == Owner::elsewhere) {
                        life.taken(digest("token"));
                    }
                    if (set != nullptr) {
                        set_all(life, *set);
                    }
                    return life;
                };
                auto origin = [&](const BlobDigests* set, ControlPeer by) { return life_of(set).origin(by); };
                if (owner == Owner::elsewhere) {
                    CHECK(origin(&one, peer).error().code == Errc::tombstone);
                    CHECK(origin(nullptr, peer).error().code == Errc::tombstone);
                    continue;
                }
                for (const BlobDigests* set : {static_cast<const BlobDigests*>(nullptr), &one}) {
                    // Nothing was set over this connection, whatever came over another one.
                    const auto own = origin(set, other_peer);
                    CHECK(own.has_value() == (owner != Owner::expected));
                    CHECK((!own || *own == Origin::own));
                }
                CHECK(origin(nullptr, ControlPeer{}).has_value() == (owner != Owner::expected));
                if (owner != Owner::here) {
                    CHECK(origin(&older, peer).value() == Origin::other_host);
                } else {
                    CHECK(origin(&one, peer).value() == Origin::given_out);
                    for (const BlobDigests* set : {&older, &mixed}) {
                        CHECK(origin(set, peer).has_value() == allow);
                        CHECK((!allow || origin(set, peer).value() == Origin::snapshot));
                    }
                }
                CHECK(origin(&registers_only, peer).error().code == Errc::usage);
            }
        }
    }

    TEST_CASE("life: a state that was given out comes back once, and not after anything has run") {
        for (Event since : {Event::startup, Event::shutdown, Event::command, Event::measurement, Event::store}) {
            Life life(false);
            bring(life, Power::started);
            give_all(life);
            life.happened(since);
            life.happened(Event::stop);
            CHECK_FALSE(life.may_set(1, one[0]));
        }
        Life life(false);
        bring(life, Power::started);
        give_all(life);
        life.happened(Event::stop);
        set_all(life, one);
        REQUIRE(life.origin(peer).value() == Origin::given_out);
        life.happened(Event::init);
        life.resumed(Origin::given_out, Power::started);
        life.happened(Event::stop);
        CHECK_FALSE(life.may_set(1, one[0])); // the same again
        set_all(life, one);
        CHECK_FALSE(life.origin(peer));
    }

    TEST_CASE("life: what was set is its connection's, and goes with it") {
        Life life(true);
        CHECK(life.set(peer, 1, one[0]));
        CHECK_FALSE(life.set(peer, 2, one[1])); // the same restore
        CHECK(life.has_set(peer));
        CHECK_FALSE(life.gone(other_peer));
        CHECK(life.gone(peer));
        CHECK_FALSE(life.gone(peer));
        CHECK_FALSE(life.gone(ControlPeer{}));
        CHECK(life.origin(peer).value() == Origin::own);
        CHECK(life.set(peer, 1, one[0]));
        CHECK(life.set(other_peer, 1, digest("other"))); // there is one restore at a time
        CHECK_FALSE(life.has_set(peer));
        CHECK(life.set_digests()[1] == store::sha256({})); // nothing of the first one
        life.happened(Event::init);
        CHECK_FALSE(life.has_set(other_peer));
    }

    TEST_CASE("life: another host takes the vTPM: with the newest state only, and as often as it asks") {
        const store::Digest token = handover_token(one);
        for (Power power : all_powers) {
            CAPTURE(power_names[static_cast<std::size_t>(power)]);
            Life life(false);
            bring(life, power);
            CHECK_FALSE(life.may_take(token));
            give_all(life);
            CHECK_FALSE(life.may_take(digest("another token")));
            REQUIRE(life.may_take(token).value());
            life.taken(token);
            CHECK(life.power() == Power::off);
            CHECK(life.owner() == Owner::elsewhere);
            CHECK(life.may_take(token).value() == false);
            CHECK_FALSE(life.may_take(digest("another token")));
            CHECK(life.may(Event::init).error().code == Errc::tombstone);
        }
        for (Event since :
             {Event::startup, Event::shutdown, Event::command, Event::measurement, Event::store, Event::init}) {
            Life life(false);
            bring(life, Power::started);
            give_all(life);
            life.happened(since);
            CHECK_FALSE(life.may_take(token));
        }
        for (Event since : {Event::look, Event::give, Event::stop}) {
            Life life(false);
            bring(life, Power::started);
            give_all(life);
            life.happened(since);
            CHECK(life.may_take(token));
        }
        Life coming(false);
        give_all(coming);
        coming.unconfirmed();
        CHECK_FALSE(coming.may_take(token)); // it is not this host's to give
    }

    TEST_CASE("what is kept in an image, in its three versions: golden, round trip, cut at every length") {
        EngineState state;
        state.permanent = SecretBytes(as_bytes("P"));
        state.volatile_state = SecretBytes(as_bytes("VV"));
        const std::string first = "5654504d"
                                  "0001"
                                  "0200"
                                  "00000001"
                                  "50"
                                  "00000000"
                                  "00000002"
                                  "5656";
        CHECK(to_hex(encode_state(TpmVersion::tpm20, state).view()) == first);
        state.unconfirmed = SecretBytes(as_bytes("U"));
        CHECK(to_hex(encode_state(TpmVersion::tpm20, state).view()) == "5654504d"
                                                                       "0002"
                                                                       "0200"
                                                                       "00000001"
                                                                       "50"
                                                                       "00000000"
                                                                       "00000002"
                                                                       "5656"
                                                                       "00000001"
                                                                       "55");
        state.unconfirmed = {};
        const GivenOut given{.digests = one, .power = Power::started};
        state.given_out = encode_given_out(given);
        const SecretBytes third = encode_state(TpmVersion::tpm20, state);
        CHECK(to_hex(third.view()) == "5654504d"
                                      "0003"
                                      "0200"
                                      "00000001"
                                      "50"
                                      "00000000"
                                      "00000002"
                                      "5656"
                                      "00000000"
                                      "00000061"
                                      "02" +
                                          to_hex(one[0]) + to_hex(one[1]) + to_hex(one[2]));
        auto back = decode_state(TpmVersion::tpm20, third.view());
        REQUIRE(back);
        CHECK(decode_given_out(back->given_out.view()).value() == given);
        CHECK(back->volatile_state.equals(state.volatile_state.view()));
        for (std::size_t n = 0; n < third.size(); ++n) {
            CHECK_FALSE(decode_state(TpmVersion::tpm20, third.view().first(n)));
        }
        auto old = decode_state(TpmVersion::tpm20, from_hex(first).value());
        REQUIRE(old);
        CHECK(old->given_out.empty());
        // Given out of no power at all, or of none that there is.
        for (std::uint8_t power : {0, 5}) {
            Bytes wrong = to_bytes(third.view());
            wrong[wrong.size() - 97] = std::byte{power};
            CHECK(decode_state(TpmVersion::tpm20, wrong).error().code == Errc::corrupt);
        }
        Bytes later = to_bytes(third.view());
        later[5] = std::byte{4};
        CHECK(decode_state(TpmVersion::tpm20, later).error().code == Errc::version);
    }
}

} // namespace instance_life_test
