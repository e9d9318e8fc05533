#include "check.hpp"
#include "list_client.hpp"
#include "loop_device.hpp"
#include "run_task.hpp"
#include "store/journal.hpp"
#include "store/state_image.hpp"

#include <algorithm>
#include <sys/wait.h>

using namespace vtpmd;
using namespace vtpmd::store;
using test::LoopDevice;
using test::run_task;

namespace {

struct Fixture {
    asio::io_context loop;
    Log log{LogLevel::error, [](LogLevel, std::string_view) {}};
    std::unique_ptr<BlockIo> io = make_block_io(loop.get_executor()).value();
    ImageIdentity identity{random_uuid(), TpmVersion::tpm12};

    std::unique_ptr<BlockFile> open(const LoopDevice& device, OpenMode mode = OpenMode::existing) {
        return io->open(device.path(), mode).value();
    }
};

} // namespace

TEST_SUITE("block device") {
    TEST_CASE_FIXTURE(Fixture, "state image: created, saved and loaded on a device, its size fixed") {
        const LoopDevice device(4 << 20);
        SecretBytes record;
        const Bytes state(20'000, std::byte{0x5d});
        {
            auto file = open(device, OpenMode::create);
            CHECK(file->fixed_size());
            CHECK(file->size() == 4 << 20);
            auto image = run_task(loop, StateImage::create(std::move(file), identity, log)).value();
            for (int i = 0; i < 3; ++i) {
                record = run_task(loop, image->prepare(state)).value();
                REQUIRE(run_task(loop, image->accept()));
            }
        }
        CHECK(run_task(loop, StateImage::create(open(device, OpenMode::create), identity, log)).error().code ==
              Errc::exists);
        auto image = run_task(loop, StateImage::open(open(device), identity, log)).value();
        CHECK(run_task(loop, image->load(record.view())).value().equals(state));
    }

    TEST_CASE_FIXTURE(Fixture, "manager image: takes the device as it is, and fills it more than once") {
        const LoopDevice device(1 << 20);
        test::ListClient client;
        const SecretBytes key{std::size_t{32}};
        auto image = run_task(loop, ManagerImage::create(open(device, OpenMode::create),
                                                         {random_uuid(), std::uint64_t{16} << 20, Bytes(10)}, log))
                         .value();
        CHECK(image->counters().half_bytes == ((1 << 20) - 131'072) / 2 / 4096 * 4096);
        REQUIRE(run_task(loop, image->start_journal(key.clone(), client)));
        for (unsigned i = 0; i < 300; ++i) {
            client.records.resize(std::min<std::size_t>(client.records.size(), 30));
            REQUIRE(run_task(loop, image->append(Bytes(5000, static_cast<std::byte>(i)))));
        }
        REQUIRE(run_task(loop, image->checkpoint()));
        CHECK(image->counters().checkpoints > 3);
        run_task(loop, image->close());
        image.reset();
        test::ListClient again;
        image = run_task(loop, ManagerImage::open(open(device), log)).value();
        REQUIRE(run_task(loop, image->open_journal(key.clone(), again)));
        CHECK(again.records == client.records);
        run_task(loop, image->close());
    }

    TEST_CASE_FIXTURE(Fixture, "a device is open once; the refusal names the process that has it") {
        const LoopDevice device(1 << 20);
        int ready[2];
        REQUIRE(::pipe2(ready, O_CLOEXEC) == 0);
        const pid_t child = ::fork();
        if (child == 0) {
            // With a loop of its own: the parent's ring is not the child's.
            asio::io_context own;
            auto own_io = make_block_io(own.get_executor());
            auto file = own_io ? (*own_io)->open(device.path(), OpenMode::existing)
                               : Result<std::unique_ptr<BlockFile>>(own_io.error());
            const char ok = file ? 'y' : 'n';
            (void)!::write(ready[1], &ok, 1);
            ::pause();
            ::_exit(0);
        }
        char held = 0;
        REQUIRE(::read(ready[0], &held, 1) == 1);
        CHECK(held == 'y');
        auto refused = io->open(device.path(), OpenMode::existing);
        CHECK(refused.has_error());
        if (refused.has_error()) {
            CHECK(refused.error().code == Errc::busy);
            CHECK(refused.error().message.find(device.path()) != std::string::npos);
        }
        ::kill(child, SIGKILL);
        ::waitpid(child, nullptr, 0);
        CHECK(io->open(device.path(), OpenMode::existing).has_value());
        ::close(ready[0]);
        ::close(ready[1]);
    }

    TEST_CASE_FIXTURE(Fixture, "a device that is too small or holds something else is refused and left as it is") {
        const LoopDevice small(256 << 10);
        CHECK(run_task(loop, StateImage::create(open(small, OpenMode::create), identity, log)).error().code ==
              Errc::no_space);
        const LoopDevice used(4 << 20);
        const std::string label = "LABELONE";
        REQUIRE(::pwrite(used.fd(), label.data(), label.size(), 512) == static_cast<ssize_t>(label.size()));
        CHECK(run_task(loop, StateImage::create(open(used, OpenMode::create), identity, log)).error().code ==
              Errc::exists);
        CHECK(run_task(loop, ManagerImage::create(open(used, OpenMode::create), {random_uuid(), 0, {}}, log))
                  .error()
                  .code == Errc::exists);
        CHECK(run_task(loop, StateImage::open(open(used), identity, log)).error().code == Errc::not_ours);
        std::string found(label.size(), ' ');
        REQUIRE(::pread(used.fd(), found.data(), found.size(), 512) == static_cast<ssize_t>(found.size()));
        CHECK(found == label);
    }
}
