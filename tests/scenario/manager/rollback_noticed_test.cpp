// Rollback stays noticed: after the TPM was replaced, with the recovery file, after a time without freshness, and whatever the TPM
// fails at. A backup can be tried and looked at without the store that it is of becoming an old one.
#include "manager_machine.hpp"

#include "manager/vault/recovery_file.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace rollback_noticed_test {

using namespace vtpmd;
using namespace vtpmd::manager;
using fakes::Machine;
using Mode = FreshnessPolicy::Mode;
using Loss = test::FaultDisk::Loss;

namespace {

Uuid numbered(unsigned n) {
    Uuid u;
    u.bytes[0] = std::byte{0xbb};
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}

struct Folder {
    Folder() {
        std::string pattern = std::filesystem::temp_directory_path() / "vtpmd-test-XXXXXX";
        REQUIRE(::mkdtemp(pattern.data()) != nullptr);
        path = pattern;
    }
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
};

/// A host with a store that has a recovery file, and one vTPM that saved 1.
struct Host {
    explicit Host(Mode mode = Mode::window) {
        m.options.freshness.mode = mode;
        m.options.recovery_file = file;
        REQUIRE(m.create());
        m.options.recovery_file.clear();
        REQUIRE(m.enrol(numbered(1)));
        REQUIRE(m.save(numbered(1), 1));
        REQUIRE(m.off());
    }
    void replace_tpm() {
        auto sealed = std::exchange(m.tpm.sealed, {});
        for (auto& [id, secret] : sealed) { // as many as before, so that no new one has an old one's number
            m.tpm.sealed.emplace(id + 1000, std::move(secret));
        }
        m.tpm.counters.clear();
        m.tpm.counter_auths.clear();
        m.tpm.identity = Bytes(3, std::byte{9});
        m.tpm.high_water = 3;
    }
    void change_pcrs(unsigned to) { m.tpm.pcrs[{hwtpm::HashAlg::sha256, 7}] = Bytes(32, static_cast<std::byte>(to)); }
    /// With or without the recovery file and the word.
    Result<void> open(bool recovery, bool word) {
        m.options.recovery_file = recovery ? file : "";
        m.options.accept_no_counter = word;
        auto opened = m.open();
        m.options.recovery_file.clear();
        m.options.accept_no_counter = false;
        return opened;
    }
    Result<Vault::Look> look(bool recovery = false) {
        Vault::Options options = m.options;
        options.recovery_file = recovery ? file : "";
        m.root.emplace(m.tpm);
        m.place.emplace(*m.disk, m.loop.log);
        Vault::Parts parts{.executor = m.loop.io.get_executor(),
                           .place = *m.place,
                           .root = *m.root,
                           .clock = m.loop.clock,
                           .log = m.loop.log,
                           .unix_time = [] { return std::uint64_t{1'700'000'000}; }};
        return m.loop.run(Vault::look(std::move(options), std::move(parts)));
    }
    /// What a backup of the open store is.
    Bytes backup() {
        auto copy = m.loop.run(m.vault->copy()).value();
        Bytes all(copy->size());
        for (std::size_t at = 0; at < all.size();) {
            at += m.loop.run(copy->read(MutByteView(all).subspan(at))).value();
        }
        return all;
    }

    Folder folder;
    std::string file = folder.path + "/recovery";
    Machine m;
};

bool says(const Result<void>& refused, std::string_view word) {
    return refused.has_error() && refused.error().message.find(word) != std::string::npos;
}

} // namespace

TEST_SUITE("rollback noticed") {
    TEST_CASE("recovery: a replaced TPM, the file used again, an old copy put back, the option left for good") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            Host h(mode);
            Machine& m = h.m;
            h.replace_tpm();
            const Bytes before = m.disk->content();
            auto refused = h.open(false, false);
            CHECK(refused.error().code == Errc::mismatch);
            CHECK(says(refused, "--recovery-file"));
            CHECK(says(refused, "--accept-counter=none"));
            refused = h.open(true, false); // there is no counter to compare with
            CHECK(refused.error().code == Errc::rollback);
            CHECK(says(refused, "--accept-counter=none"));
            CHECK(m.disk->content() == before);
            CHECK(m.tpm.counters.empty());

            REQUIRE(h.open(true, true));
            CHECK(m.loop.logged("as told"));
            CHECK(m.load(numbered(1)) == 1);
            CHECK(m.tpm.counters.size() == 1);
            REQUIRE(m.off());
            REQUIRE(h.open(false, false));
            REQUIRE(m.off());
            const Bytes old = m.disk->content();
            REQUIRE(h.open(false, false));
            REQUIRE(m.save(numbered(1), 2));
            REQUIRE(m.off());
            const Bytes newest = m.disk->content();

            m.replace_disk(old);
            CHECK(h.open(false, false).error().code == Errc::rollback);
            CHECK(h.open(true, false).has_error());
            CHECK(h.open(false, true).has_error());
            CHECK(h.open(true, true).has_error());
            CHECK(m.disk->content() == old);

            m.replace_disk(newest);
            for (int start = 0; start < 12; ++start) {
                refused = h.open(true, false);
                CHECK(refused.error().code == Errc::usage);
                CHECK(says(refused, "not needed"));
                CHECK(h.open(false, true).error().code == Errc::usage); // the word does not stay in a configuration
            }
            CHECK(m.tpm.counters.size() == 1);
            REQUIRE(h.open(false, false));
            CHECK(m.load(numbered(1)) == 2);
        }
    }

    TEST_CASE("recovery: the box is closed anew, so the counter is compared after it, too, without any word") {
        Host h;
        Machine& m = h.m;
        h.replace_tpm();
        REQUIRE(h.open(true, true));
        REQUIRE(m.off());
        const Bytes old = m.disk->content();
        REQUIRE(h.open(false, false));
        REQUIRE(m.save(numbered(1), 2));
        REQUIRE(m.off());
        const Bytes newest = m.disk->content();
        h.change_pcrs(0xe1);
        m.replace_disk(old);
        auto refused = h.open(true, false);
        CHECK(refused.error().code == Errc::rollback);
        CHECK(says(refused, "an old copy"));
        CHECK(h.open(true, true).error().code == Errc::usage); // nor does the word help: there is a counter
        CHECK(m.disk->content() == old);
        m.replace_disk(newest);
        REQUIRE(h.open(true, false));
        CHECK(m.load(numbered(1)) == 2);
        CHECK(m.tpm.counters.size() == 1);
        REQUIRE(m.off());
        // And once more, after it was sealed anew by the recovery itself.
        h.change_pcrs(0xe2);
        REQUIRE(h.open(true, false));
        CHECK(m.tpm.counters.size() == 1);
    }

    TEST_CASE("recovery: a store made with freshness off needs the word once, and its box knows the counter then") {
        Host h(Mode::off);
        Machine& m = h.m;
        const Bytes without = m.disk->content();
        m.options.freshness.mode = Mode::window;
        CHECK(says(h.open(false, false), "--accept-counter=none"));
        REQUIRE(h.open(false, true));
        REQUIRE(m.save(numbered(1), 2));
        REQUIRE(m.off());
        const Bytes newest = m.disk->content();
        m.replace_disk(without); // as it was: names no counter
        CHECK(h.open(false, false).error().code == Errc::rollback);
        m.replace_disk(newest);
        h.change_pcrs(0xe3);
        REQUIRE(h.open(true, false));
        CHECK(m.load(numbered(1)) == 2);
        CHECK(m.tpm.counters.size() == 1);
    }

    TEST_CASE("a counter that somebody deleted, or that is another one, needs the word; what is replaced goes from the "
              "chip") {
        Host h;
        Machine& m = h.m;
        SUBCASE("deleted") {
            m.tpm.counters.clear();
            CHECK(says(h.open(false, false), "is not in this TPM"));
        }
        SUBCASE("another") {
            m.tpm.counters.begin()->second -= 5;
            CHECK(says(h.open(false, false), "another counter"));
        }
        REQUIRE(h.open(false, true));
        CHECK(m.tpm.counters.size() == 1);
        REQUIRE(m.off());
        REQUIRE(h.open(false, false));
        CHECK(m.load(numbered(1)) == 1);
    }

    TEST_CASE("no failed read of the counter counts as 'there is none', and no failed unseal as 'not this TPM'") {
        for (Errc code : {Errc::tpm, Errc::timed_out, Errc::io, Errc::busy, Errc::permission, Errc::unavailable,
                          Errc::protocol, Errc::closed, Errc::unsupported, Errc::canceled}) {
            for (std::string_view operation : {"counter_read", "unseal"}) {
                Host h;
                Machine& m = h.m;
                if (operation == "counter_read") {
                    h.change_pcrs(0xe4);
                }
                const Bytes before = m.disk->content();
                const auto counters = m.tpm.counters;
                m.tpm.before = [&](std::string_view op) -> std::optional<Error> {
                    return op == operation ? std::optional(make_error(code, "not now")) : std::nullopt;
                };
                for (bool word : {false, true}) {
                    auto refused = h.open(true, word);
                    REQUIRE(refused.has_error());
                    CHECK(refused.error().code == code);
                }
                m.tpm.before = nullptr;
                CHECK(m.disk->content() == before);
                CHECK(m.tpm.counters == counters);
            }
        }
    }

    TEST_CASE("the TPM fails at every operation of an open in turn, before or after it happened") {
        enum class Kind { plain, pcrs_changed, tpm_replaced };
        for (Kind kind : {Kind::plain, Kind::pcrs_changed, Kind::tpm_replaced}) {
            for (bool happened : {false, true}) {
                bool reached_end = false;
                for (std::size_t at = 0; !reached_end; ++at) {
                    REQUIRE(at < 60);
                    Host h;
                    Machine& m = h.m;
                    const Bytes old = m.disk->content();
                    REQUIRE(h.open(false, false));
                    REQUIRE(m.save(numbered(1), 2));
                    REQUIRE(m.off());
                    if (kind == Kind::pcrs_changed) {
                        h.change_pcrs(0xe5);
                    } else if (kind == Kind::tpm_replaced) {
                        h.replace_tpm();
                    }
                    std::size_t left = at;
                    bool failed = false;
                    auto fail = [&](std::string_view) -> std::optional<Error> {
                        if (left-- != 0) {
                            return std::nullopt;
                        }
                        failed = true;
                        return make_error(Errc::tpm, "a fault");
                    };
                    (happened ? m.tpm.after : m.tpm.before) = fail;
                    const bool recovery = kind != Kind::plain;
                    const bool word = kind == Kind::tpm_replaced;
                    auto first = h.open(recovery, word);
                    m.tpm.before = m.tpm.after = nullptr;
                    reached_end = !failed;
                    INFO("kind ", static_cast<int>(kind), " operation ", at, " after ", happened);
                    if (first) {
                        CHECK(m.load(numbered(1)) == 2);
                        (void)m.off();
                    }
                    // Once the TPM works: as it was said, or without a word where it is sealed anew already.
                    auto again = h.open(recovery, word);
                    if (!again && again.error().code == Errc::usage) {
                        again = h.open(false, false);
                    }
                    REQUIRE(again);
                    CHECK(m.load(numbered(1)) == 2);
                    CHECK(m.tpm.counters.size() == 1);
                    REQUIRE(m.off());
                    m.replace_disk(old);
                    CHECK(h.open(false, false).has_error());
                    CHECK(h.open(true, false).has_error());
                }
            }
        }
    }

    TEST_CASE("a backup that is only tried does not make the store an old one") {
        for (Mode mode : {Mode::window, Mode::strict}) {
            Host h(mode);
            Machine& m = h.m;
            REQUIRE(h.open(false, false));
            const Bytes copy = h.backup();
            REQUIRE(m.save(numbered(1), 2));
            m.crash(Loss::all);
            const Bytes production = m.disk->content();

            if (mode == Mode::window) { // nothing was stepped since: it opens, and nothing is stepped by that
                m.replace_disk(copy);
                REQUIRE(h.open(false, false));
                CHECK(m.loop.logged("this is a backup"));
                CHECK(m.load(numbered(1)) == 1);
                REQUIRE(m.off());
                CHECK(m.disk->content().size() == copy.size());
                REQUIRE(h.open(false, false)); // twice
                REQUIRE(m.off());
            }
            m.replace_disk(production);
            REQUIRE(h.open(false, false));
            CHECK(m.load(numbered(1)) == 2);
            REQUIRE(m.off());
            m.replace_disk(copy);
            CHECK(h.open(false, false).error().code == Errc::rollback);
        }
    }

    TEST_CASE("a backup that is put in the place of a lost store is that store from its first change on") {
        Host h;
        Machine& m = h.m;
        REQUIRE(h.open(false, false));
        const Bytes copy = h.backup();
        REQUIRE(m.save(numbered(1), 2));
        m.crash(Loss::all);
        const Bytes production = m.disk->content();
        m.replace_disk(copy);
        REQUIRE(h.open(false, false));
        REQUIRE(m.save(numbered(1), 7));
        m.crash(Loss::all); // at once: the step was made before the change was acknowledged
        const Bytes taken = m.disk->content();
        CHECK(store::ManagerImage::read_head(copy, "copy").value().backup);
        CHECK_FALSE(store::ManagerImage::read_head(taken, "taken").value().backup);
        m.replace_disk(production);
        CHECK(h.open(false, false).error().code == Errc::rollback);
        m.replace_disk(taken);
        REQUIRE(h.open(false, false));
        CHECK(m.load(numbered(1)) == 7);
        REQUIRE(m.loop.run(m.vault->remove(numbered(1), TombstoneRecord::Reason::deleted)));
    }

    TEST_CASE("a look says what a start would, and changes neither the store nor the TPM") {
        struct Case {
            std::string what;
            bool recovery = false;
            std::function<void(Host&)> prepare;
        };
        const std::vector<Case> cases{
            {"as it is", false, [](Host&) {}},
            {"an old copy", false,
             [](Host& h) {
                 Bytes old = h.m.disk->content();
                 REQUIRE(h.open(false, false));
                 REQUIRE(h.m.off());
                 h.m.replace_disk(std::move(old));
             }},
            {"PCRs changed", false, [](Host& h) { h.change_pcrs(0xe6); }},
            {"PCRs changed, recovery file", true, [](Host& h) { h.change_pcrs(0xe6); }},
            {"TPM replaced", false, [](Host& h) { h.replace_tpm(); }},
            {"TPM replaced, recovery file", true, [](Host& h) { h.replace_tpm(); }},
            {"the counter is gone", false, [](Host& h) { h.m.tpm.counters.clear(); }},
        };
        for (const Case& c : cases) {
            INFO(c.what);
            Host h;
            c.prepare(h);
            const Bytes before = h.m.disk->content();
            const auto operations = h.m.disk->operations();
            const auto counters = h.m.tpm.counters;
            auto seen = h.look(c.recovery);
            CHECK(h.m.disk->content() == before);
            CHECK(h.m.disk->operations() == operations);
            CHECK(h.m.tpm.counters == counters);
            const Result<void> said = seen ? seen->opens : Result<void>(seen.error());
            if (seen) {
                CHECK(seen->vtpms == 1);
                CHECK(seen->recovery_keys.size() == 1);
                CHECK(seen->recovery.find("opens it") == (c.recovery ? 0 : std::string::npos));
            }
            auto opened = h.open(c.recovery, false);
            CHECK(opened.has_value() == said.has_value());
            if (!opened && !said) {
                CHECK(opened.error().code == said.error().code);
                CHECK(opened.error().message.ends_with(said.error().message));
            }
        }
        Host h; // a recovery file can be tried where the TPM opens the store, too
        auto seen = h.look(true);
        REQUIRE(seen);
        CHECK(seen->opens);
        CHECK(seen->recovery.find("opens it") == 0);
        std::ofstream(h.file) << std::string(64, '0') << "\n";
        seen = h.look(true);
        REQUIRE(seen);
        CHECK(seen->recovery.find("not a recovery key of this store") != std::string::npos);
    }

    TEST_CASE("recovery keys: added, listed and removed while the store is open; each file says what it is of") {
        Host h;
        Machine& m = h.m;
        REQUIRE(h.open(false, false));
        REQUIRE(m.vault->recovery_keys().size() == 1);
        const std::string first = m.vault->recovery_keys()[0].id;
        auto text = m.loop.run(m.vault->add_recovery_key("safe in Kiel"));
        REQUIRE(text);
        const std::string words(reinterpret_cast<const char*>(text->data()), text->size());
        for (const std::string& word :
             {std::string("# vtpmd recovery key "), std::string("safe in Kiel"), to_string(m.vault->uuid()),
              std::string("manager.img"), host_name(), std::string("2023-11-14"), std::string("--recovery-file")}) {
            CHECK_MESSAGE(words.find(word) != std::string::npos, word);
        }
        REQUIRE(m.vault->recovery_keys().size() == 2);
        CHECK(m.vault->recovery_keys()[1].label == "safe in Kiel");
        CHECK(m.loop.run(m.vault->add_recovery_key("two\nlines")).error().code == Errc::usage);
        const std::string second = h.folder.path + "/second";
        std::ofstream(second) << words;
        std::string without_words = words.substr(words.rfind('#'));
        without_words = without_words.substr(without_words.find('\n') + 1); // as an older program wrote it
        const std::string bare = h.folder.path + "/bare";
        std::ofstream(bare) << without_words;
        CHECK(without_words.size() == 65);
        CHECK(m.loop.run(m.vault->remove_recovery_key("01234567")).error().code == Errc::not_found);
        REQUIRE(m.loop.run(m.vault->remove_recovery_key(first)));
        REQUIRE(m.off());

        h.change_pcrs(0xe7);
        CHECK(h.open(true, false).error().code == Errc::mismatch); // the first one opens nothing any more
        h.file = bare;
        REQUIRE(h.open(true, false));
        REQUIRE(m.off());
        h.change_pcrs(0xe8);
        h.file = second;
        REQUIRE(h.open(true, false));
        for (std::size_t n = m.vault->recovery_keys().size(); n < recovery_key_limit; ++n) {
            REQUIRE(m.loop.run(m.vault->add_recovery_key("")));
        }
        CHECK(m.loop.run(m.vault->add_recovery_key("")).error().code == Errc::usage);
        REQUIRE(m.off());
        REQUIRE(h.open(false, false));
        CHECK(m.vault->recovery_keys().size() == recovery_key_limit);
    }

    TEST_CASE("recovery keys: the disk fails at every step of adding one; what was given out opens, or nothing was") {
        bool reached_end = false;
        for (std::uint64_t at = 0; !reached_end; ++at) {
            REQUIRE(at < 40);
            Host h;
            Machine& m = h.m;
            REQUIRE(h.open(false, false));
            m.tie_tpm_to_disk();
            m.die_at_disk(at);
            auto text = m.loop.run(m.vault->add_recovery_key("x"));
            reached_end = text.has_value();
            m.crash(Loss::all);
            REQUIRE(h.open(false, false));
            const std::size_t keys = m.vault->recovery_keys().size();
            CHECK((reached_end ? keys == 2 : keys >= 1));
        }
    }

    TEST_CASE(
        "a store of the form before, with one recovery box: opens, its file opens it, and its counter is compared") {
        Host h;
        Machine& m = h.m;
        { // its superblock as an older program wrote it
            auto image = m.loop.run(store::ManagerImage::open(m.disk->open(), m.loop.log)).value();
            Superblock s = decode_superblock(image->superblock()).value();
            const Bytes box = s.recovery.at(0).box;
            s.recovery.clear();
            Bytes now = encode(s);
            // u16 version, u8 flags, uuid, u32 handle, two strings, then the keys' count
            std::size_t at = 2 + 1 + 16 + 4;
            for (int n = 0; n < 2; ++n) {
                at += 2 + (std::to_integer<std::size_t>(now[at]) << 8U) + std::to_integer<std::size_t>(now[at + 1]);
            }
            WireWriter old;
            old.be16(1).bytes(ByteView(now).subspan(2, at - 2));
            old.be16(static_cast<std::uint16_t>(box.size())).bytes(box).bytes(ByteView(now).subspan(at + 1));
            REQUIRE(m.loop.run(image->replace_superblock(old.take())));
            m.loop.run(image->close());
        }
        const Bytes old = m.disk->content();
        REQUIRE(h.open(false, false));
        CHECK(m.load(numbered(1)) == 1);
        REQUIRE(m.vault->recovery_keys().size() == 1);
        CHECK(shown_id(m.vault->recovery_keys()[0]) == "unnamed");
        REQUIRE(m.off());
        m.options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha256, .pcrs = {7}};
        REQUIRE(h.open(false, false)); // sealed anew: its box cannot be closed anew, and that is said
        CHECK(m.loop.logged("vtpmctl recovery add"));
        REQUIRE(m.off());
        m.options.seal_pcrs.reset();
        h.change_pcrs(0xe9);
        REQUIRE(h.open(true, false)); // the same counter
        CHECK(shown_id(m.vault->recovery_keys()[0]) != "unnamed");
        REQUIRE(m.off());
        REQUIRE(h.open(false, false));
        REQUIRE(m.off());
        m.replace_disk(old);
        CHECK(h.open(true, false).error().code == Errc::rollback);
    }
}

} // namespace rollback_noticed_test
