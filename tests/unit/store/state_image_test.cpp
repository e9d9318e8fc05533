#include "store/state_image.hpp"

#include "check.hpp"
#include "fault_file.hpp"
#include "run_task.hpp"

namespace store_state_image_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::run_task;

namespace {

struct Fixture {
    asio::io_context loop;
    std::vector<std::string> warnings;
    Log log{LogLevel::info, [this](LogLevel, std::string_view line) { warnings.emplace_back(line); }};
    ImageIdentity identity{parse_uuid("11111111-2222-3333-4444-555555555555").value(), TpmVersion::tpm20};

    Result<std::unique_ptr<StateImage>> create(FaultDisk& disk) {
        return run_task(loop, StateImage::create(disk.open(), identity, log));
    }
    Result<std::unique_ptr<StateImage>> open(FaultDisk& disk) {
        return run_task(loop, StateImage::open(disk.open(), identity, log));
    }
    /// prepare and accept.
    SecretBytes save(StateImage& image, ByteView state) {
        SecretBytes hash_key = run_task(loop, image.prepare(state)).value();
        run_task(loop, image.accept()).value();
        return hash_key;
    }
};

Bytes state_of(std::size_t n, unsigned seed) {
    Bytes out(n);
    for (std::size_t i = 0; i < n; ++i) {
        out[i] = static_cast<std::byte>(seed + i * 13);
    }
    return out;
}

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "state image: a save is loaded again with what the manager keeps") {
        FaultDisk disk;
        auto image = create(disk).value();
        CHECK_FALSE(image->had_state());
        SecretBytes last;
        for (unsigned i = 0; i < 5; ++i) {
            const Bytes state = state_of(1000 + 3000 * i, i);
            last = save(*image, state);
            CHECK(last.size() == hash_key_size);
            CHECK(image->had_state());
            auto again = open(disk).value();
            CHECK(again->had_state());
            CHECK(run_task(loop, again->load(last.view())).value().equals(state));
        }
        CHECK(disk.clean());
    }

    TEST_CASE_FIXTURE(Fixture, "state image: a rejected save leaves the old one valid") {
        FaultDisk disk;
        auto image = create(disk).value();
        const Bytes first = state_of(500, 1);
        const SecretBytes kept = save(*image, first);
        for (int i = 0; i < 3; ++i) {
            REQUIRE(run_task(loop, image->prepare(state_of(700, 2))));
            CHECK(run_task(loop, image->prepare(state_of(700, 3))).error().code == Errc::busy);
            image->reject();
        }
        auto again = open(disk).value();
        CHECK(run_task(loop, again->load(kept.view())).value().equals(first));
    }

    TEST_CASE_FIXTURE(Fixture, "state image: an image with state writes nothing before it was loaded") {
        FaultDisk disk;
        auto image = create(disk).value();
        (void)save(*image, state_of(500, 1));
        auto again = open(disk).value();
        CHECK(run_task(loop, again->prepare(state_of(10, 2))).error().code == Errc::usage);
    }

    TEST_CASE_FIXTURE(Fixture, "state image: given up, its state is replaced by the first save, and then gone") {
        FaultDisk disk;
        auto image = create(disk).value();
        const SecretBytes older = save(*image, state_of(5000, 1));
        const SecretBytes last = save(*image, state_of(9000, 2));
        auto hash_of = [](const SecretBytes& key) { return key.view().subspan(32); };
        auto reset = open(disk).value();
        CHECK(run_task(loop, reset->holds(hash_of(last))).value());
        CHECK_FALSE(run_task(loop, reset->give_up(Bytes(32))).value());
        CHECK(run_task(loop, reset->prepare(state_of(10, 3))).error().code == Errc::usage);
        REQUIRE(run_task(loop, reset->give_up(hash_of(last))).value());
        // Until the first save is accepted the state is there, so that the manager's word is not needed twice.
        for (int i = 0; i < 2; ++i) {
            REQUIRE(run_task(loop, reset->prepare(state_of(10, 3))));
            CHECK(run_task(loop, open(disk).value()->holds(hash_of(last))).value());
            reset->reject();
        }
        const SecretBytes fresh = save(*reset, state_of(10, 4));
        auto again = open(disk).value();
        CHECK_FALSE(run_task(loop, again->holds(hash_of(last))).value());
        CHECK_FALSE(run_task(loop, again->holds(hash_of(older))).value());
        CHECK(run_task(loop, again->load(last.view())).error().code == Errc::rollback);
        CHECK(run_task(loop, again->load(fresh.view())).value().equals(state_of(10, 4)));
        const SecretBytes next = save(*again, state_of(20, 5));
        CHECK(run_task(loop, open(disk).value()->load(next.view())).value().equals(state_of(20, 5)));
        CHECK(disk.clean());
    }

    TEST_CASE_FIXTURE(Fixture, "state image: given up, with a crash at every step: the old state, or the new one") {
        FaultDisk before;
        auto image = create(before).value();
        const SecretBytes last = save(*image, state_of(5000, 1));
        const ByteView past = last.view().subspan(32);
        bool reached_end = false;
        for (std::uint64_t step = 0; !reached_end; ++step) {
            REQUIRE(step < 100);
            FaultDisk disk(before.content());
            auto reset = open(disk).value();
            REQUIRE(run_task(loop, reset->give_up(past)).value());
            disk.plan.die_at = disk.operations() + step;
            auto key = run_task(loop, reset->prepare(state_of(10, 2)));
            const bool taken = key.has_value(); // the manager has its key from here on
            reached_end = taken && run_task(loop, reset->accept()).has_value() && !disk.dead();
            for (auto loss : {FaultDisk::Loss::all, FaultDisk::Loss::none, FaultDisk::Loss::sectors}) {
                FaultDisk left(disk.after_crash(loss, 1));
                auto found = open(left).value();
                if (taken) {
                    CHECK(run_task(loop, found->load(key->view())).value().equals(state_of(10, 2)));
                } else {
                    CHECK(run_task(loop, found->give_up(past)).value());
                }
            }
        }
    }

    TEST_CASE_FIXTURE(Fixture,
                      "state image: a withdrawn save does not count, whichever key the manager turns out to have") {
        FaultDisk disk;
        auto image = create(disk).value();
        CHECK(run_task(loop, image->withdraw()).error().code == Errc::usage); // nothing is pending
        REQUIRE(run_task(loop, image->prepare(state_of(100, 7))));
        CHECK(run_task(loop, image->withdraw()).error().code == Errc::usage); // there is nothing before it
        image->reject();
        const SecretBytes older = save(*image, state_of(3000, 1));
        const SecretBytes withdrawn = run_task(loop, image->prepare(state_of(9000, 2))).value();
        REQUIRE(run_task(loop, image->withdraw()));
        for (const SecretBytes* on_record : {&older, &withdrawn}) {
            auto again = open(disk).value();
            CHECK(run_task(loop, again->load(on_record->view())).value().equals(state_of(3000, 1)));
            CHECK(run_task(loop, again->load(SecretBytes(Bytes(64, std::byte{9})).view())).error().code ==
                  Errc::rollback);
        }
        // The one that could be on record may be overwritten, and what comes next counts.
        auto again = open(disk).value();
        REQUIRE(run_task(loop, again->load(withdrawn.view())));
        const SecretBytes next = run_task(loop, again->prepare(state_of(4000, 3))).value();
        auto crashed = open(disk).value();
        CHECK(run_task(loop, crashed->load(withdrawn.view())).value().equals(state_of(3000, 1)));
        REQUIRE(run_task(loop, again->accept()));
        auto last = open(disk).value();
        CHECK(run_task(loop, last->load(next.view())).value().equals(state_of(4000, 3)));
        CHECK(run_task(loop, last->load(withdrawn.view())).error().code == Errc::rollback);
    }

    TEST_CASE_FIXTURE(Fixture, "state image: withdrawn twice in a row, whichever of them the manager has") {
        FaultDisk disk;
        auto image = create(disk).value();
        const SecretBytes older = save(*image, state_of(3000, 1));
        std::vector<SecretBytes> offered;
        offered.push_back(older.clone());
        for (unsigned k = 0; k < 8; ++k) {
            offered.push_back(run_task(loop, image->prepare(state_of(9000, 2 + k))).value());
            REQUIRE(run_task(loop, image->withdraw()));
        }
        REQUIRE(run_task(loop, image->prepare(state_of(9000, 20))));
        CHECK(run_task(loop, image->withdraw()).error().code == Errc::busy); // no room for more
        for (const SecretBytes& key : offered) {
            auto again = open(disk).value();
            CHECK(run_task(loop, again->load(key.view())).value().equals(state_of(3000, 1)));
        }
    }

    // The manager has the key of a save that was withdrawn; after a restart another one is, which the manager never got.
    TEST_CASE_FIXTURE(Fixture, "state image: withdrawn again after a restart, the first one still loads") {
        for (std::uint64_t fail = 0;; ++fail) {
            FaultDisk disk;
            auto image = create(disk).value();
            const SecretBytes older = save(*image, state_of(3000, 1));
            const SecretBytes on_record = run_task(loop, image->prepare(state_of(9000, 2))).value();
            REQUIRE(run_task(loop, image->withdraw()));
            for (unsigned start = 0; start < 20; ++start) { // more often than there is room for
                image = open(disk).value();
                REQUIRE(run_task(loop, image->load(on_record.view())).value().equals(state_of(3000, 1)));
                disk.plan.fail_at = start == 7 ? disk.operations() + fail : test::never;
                auto offered = run_task(loop, image->prepare(state_of(9000, 3 + start)));
                const bool withdrawn = offered && run_task(loop, image->withdraw()).has_value();
                CHECK((withdrawn || start == 7));
                const bool reached = disk.operations() > disk.plan.fail_at;
                disk.plan = {};
                auto again = open(disk).value();
                if (withdrawn) {
                    CHECK(run_task(loop, again->load(offered->view())).value().equals(state_of(3000, 1)));
                    again = open(disk).value();
                }
                CHECK(run_task(loop, again->load(on_record.view())).value().equals(state_of(3000, 1)));
                if (start == 7 && !reached) {
                    return;
                }
            }
        }
    }

    TEST_CASE_FIXTURE(
        Fixture, "state image: a withdrawal is told done only if it is on the disk; whatever fails, a state loads") {
        for (std::uint64_t fail = 0;; ++fail) {
            FaultDisk disk;
            auto image = create(disk).value();
            const SecretBytes older = save(*image, state_of(3000, 1));
            const SecretBytes withdrawn = run_task(loop, image->prepare(state_of(9000, 2))).value();
            disk.plan.fail_at = disk.operations() + fail;
            const bool done = run_task(loop, image->withdraw()).has_value();
            const bool reached = disk.operations() > disk.plan.fail_at;
            disk.plan = {};
            auto again = open(disk).value();
            CHECK(run_task(loop, again->load(older.view())).value().equals(state_of(3000, 1)));
            again = open(disk).value(); // what was loaded is what the manager has
            auto by_new = run_task(loop, again->load(withdrawn.view()));
            REQUIRE(by_new);
            CHECK((by_new->equals(state_of(3000, 1)) || (!done && by_new->equals(state_of(9000, 2)))));
            if (!reached) {
                CHECK(done);
                break;
            }
        }
    }

    TEST_CASE_FIXTURE(Fixture, "state image: of another vTPM or another TPM version it is refused, naming both") {
        FaultDisk disk;
        (void)create(disk).value();
        ImageIdentity other = identity;
        other.version = TpmVersion::tpm12;
        auto refused = run_task(loop, StateImage::open(disk.open(), other, log));
        CHECK(refused.error().code == Errc::mismatch);
        CHECK(refused.error().message.find("TPM 2.0, not 1.2") != std::string::npos);
        other.uuid = random_uuid();
        refused = run_task(loop, StateImage::open(disk.open(), other, log));
        CHECK(refused.error().code == Errc::mismatch);
        CHECK(refused.error().message.find(to_string(other.uuid)) != std::string::npos);
        CHECK(refused.error().message.find(to_string(identity.uuid)) != std::string::npos);
        CHECK(run_task(loop, StateImage::identify(*disk.open())).value().uuid == identity.uuid);
    }
}

} // namespace store_state_image_test
