#include "hardware.hpp"

#include "hwtpm/drivers/swtpm_device.hpp"
#include "hwtpm/queue/hardware_root.hpp"
#include "manager/vault/vault.hpp"
#include "must.hpp"
#include "process.hpp"
#include "util/task_group.hpp"

#include <algorithm>
#include <atomic>
#include <fmt/format.h>
#include <optional>
#include <stdexcept>
#include <thread>

namespace bench {

using namespace vtpmd;
using Steady = std::chrono::steady_clock;

namespace {

constexpr std::chrono::seconds start_patience{20};
constexpr std::uint64_t store_size = std::uint64_t{16} << 20;
constexpr std::chrono::milliseconds random_pause{2};
constexpr std::size_t random_size = 16;

class SlowDevice final : public hwtpm::TpmDevice {
  public:
    SlowDevice(std::unique_ptr<hwtpm::TpmDevice> inner, const std::atomic<bool>& slow)
        : inner_(std::move(inner))
        , slow_(slow) {}
    [[nodiscard]] std::string description() const override { return inner_->description(); }
    Result<Bytes> transmit(ByteView command, std::chrono::milliseconds limit) override {
        if (slow_) {
            std::this_thread::sleep_for(hardware_pace);
        }
        return inner_->transmit(command, limit);
    }
    Result<void> claim() override { return inner_->claim(); }
    void release() noexcept override { inner_->release(); }
    Result<void> restart() override { return inner_->restart(); }
    [[nodiscard]] bool exclusive() const override { return inner_->exclusive(); }

  private:
    std::unique_ptr<hwtpm::TpmDevice> inner_;
    const std::atomic<bool>& slow_;
};

Uuid uuid_of(std::size_t n) {
    Uuid out;
    out.bytes[0] = std::byte{1};
    out.bytes[14] = static_cast<std::byte>(n >> 8U);
    out.bytes[15] = static_cast<std::byte>(n);
    return out;
}

std::unique_ptr<hwtpm::TpmDevice> connect(const std::string& socket, const Log& log) {
    const auto give_up = Steady::now() + start_patience;
    for (;;) {
        auto device = hwtpm::open_swtpm({.kind = hwtpm::DriverKind::swtpm_unix, .path = socket}, 0, log);
        if (device) {
            return std::move(*device);
        }
        if (Steady::now() > give_up) {
            throw std::runtime_error(device.error().message);
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
}

} // namespace

struct HardwareBench::Impl {
    Impl(const std::string& swtpm, const std::filesystem::path& dir, manager::FreshnessPolicy freshness)
        : clock(io.get_executor())
        , tasks(io.get_executor(), log) {
        std::filesystem::create_directories(dir / "tpm");
        const std::string socket = (dir / "tpm.sock").string();
        tpm = Process({swtpm, "socket", "--tpm2", "--tpmstate", "dir=" + (dir / "tpm").string(), "--server",
                       "type=unixio,path=" + socket, "--ctrl", "type=unixio,path=" + socket + ".ctrl", "--flags",
                       "not-need-init,startup-clear"},
                      dir / "swtpm.log");
        root = must(
            hwtpm::make_root20(std::make_unique<SlowDevice>(connect(socket, log), slow), {}, io.get_executor(), log),
            "the TPM");
        block_io = must(make_block_io(io.get_executor()), "the disk");
        place = manager::make_file_place(*block_io, (dir / "manager.img").string(), log);
        vault = run(manager::Vault::create({.size = store_size,
                                            .recovery_file = {},
                                            .seal_pcrs = hwtpm::PcrSelection{},
                                            .allow_zero_pcrs = false,
                                            .freshness = freshness,
                                            .accept_counter = {}},
                                           {.executor = io.get_executor(),
                                            .place = *place,
                                            .root = *root,
                                            .clock = clock,
                                            .log = log,
                                            .unix_time = [] { return std::uint64_t{0}; }}),
                    "the store");
        tasks.spawn("freshness", vault->freshness().run());
    }
    ~Impl() {
        slow = false;
        asio::co_spawn(io, end(), [](const std::exception_ptr& /*nobody to tell*/) {});
        io.restart();
        io.run();
    }
    Task<> end() {
        tasks.cancel();
        co_await tasks.join();
        if (vault) {
            (void)co_await vault->close();
        }
        if (root) {
            co_await root->close();
        }
    }

    template <typename T>
    T run(Task<Result<T>> task, std::string_view doing) {
        std::optional<Result<T>> out;
        asio::co_spawn(io, std::move(task), [&](const std::exception_ptr& e, Result<T> value) {
            if (e) {
                std::rethrow_exception(e);
            }
            out.emplace(std::move(value));
        });
        io.restart();
        while (!out && io.run_one() != 0) {
        }
        return must(std::move(*out), doing);
    }

    Task<Result<void>> register_up_to(std::size_t count) {
        TaskGroup group(io.get_executor(), log);
        for (; registered < count; ++registered) {
            group.spawn("register", one_more(registered));
        }
        co_await group.join();
        co_return failed ? Result<void>(*failed) : Result<void>();
    }
    Task<> one_more(std::size_t n) { note(co_await vault->register_vtpm(uuid_of(n), TpmVersion::tpm20)); }
    Task<> commit(std::size_t n, Steady::time_point until) {
        for (std::uint8_t mark = 0; Steady::now() < until && !failed; ++mark) {
            SecretBytes key{ByteView(Bytes(manager::hash_key_long, static_cast<std::byte>(mark)))};
            note(co_await vault->save_key(uuid_of(n), std::move(key)));
            ++commits;
        }
    }
    Task<Result<void>> commit_all(std::size_t vtpms, Steady::time_point until) {
        TaskGroup group(io.get_executor(), log);
        for (std::size_t n = 0; n < vtpms; ++n) {
            group.spawn("commit", commit(n, until));
        }
        co_await group.join();
        co_return failed ? Result<void>(*failed) : Result<void>();
    }
    Task<> seal_until(const bool& stop) {
        while (!stop && !failed) {
            auto sealed = co_await root->seal(SecretBytes(32), {});
            if (!sealed) {
                note(sealed.error());
            }
        }
    }
    Task<Result<std::vector<double>>> ask_random(bool sealing, Steady::time_point until) {
        TaskGroup group(io.get_executor(), log);
        bool stop = false;
        if (sealing) {
            group.spawn("seal", seal_until(stop));
        }
        std::vector<double> samples;
        while (Steady::now() < until && !failed) {
            (void)co_await clock.sleep_for(random_pause);
            const auto begin = Steady::now();
            auto bytes = co_await root->random(random_size);
            samples.push_back(std::chrono::duration<double, std::micro>(Steady::now() - begin).count());
            if (!bytes) {
                note(bytes.error());
            }
        }
        stop = true;
        co_await group.join();
        co_return failed ? Result<std::vector<double>>(*failed) : Result<std::vector<double>>(std::move(samples));
    }
    void note(const Result<void>& result) {
        if (!result && !failed) {
            failed = result.error();
        }
    }

    asio::io_context io{1};
    Log log{LogLevel::error, [](LogLevel, std::string_view) {}};
    SystemClock clock;
    TaskGroup tasks;
    std::atomic<bool> slow = false;
    Process tpm;
    std::unique_ptr<hwtpm::RootOfTrust> root;
    std::unique_ptr<BlockIo> block_io;
    std::unique_ptr<manager::ImagePlace> place;
    std::unique_ptr<manager::Vault> vault;
    std::size_t registered = 0;
    std::size_t commits = 0;
    std::optional<Error> failed;
};

HardwareBench::HardwareBench(const std::string& swtpm, const std::filesystem::path& dir,
                             manager::FreshnessPolicy freshness)
    : impl_(std::make_unique<Impl>(swtpm, dir, freshness)) {}

HardwareBench::~HardwareBench() = default;

CommitCost HardwareBench::commits(std::size_t vtpms, std::chrono::milliseconds time) {
    impl_->slow = false;
    impl_->run(impl_->register_up_to(vtpms), "registering vTPMs");
    impl_->slow = true;
    impl_->commits = 0;
    const auto commands = impl_->root->metrics().commands;
    const auto steps = impl_->vault->freshness().counters().steps;
    const auto batches = impl_->vault->journal_counters().batches;
    const auto begin = Steady::now();
    impl_->run(impl_->commit_all(vtpms, begin + time), "committing");
    const double seconds = std::chrono::duration<double>(Steady::now() - begin).count();
    const auto count = static_cast<double>(impl_->commits);
    const auto written = static_cast<double>(impl_->vault->journal_counters().batches - batches);
    return {.per_second = count / seconds,
            .commands_per_commit = static_cast<double>(impl_->root->metrics().commands - commands) / count,
            .steps_per_batch = static_cast<double>(impl_->vault->freshness().counters().steps - steps) / written,
            .commits_per_batch = count / written};
}

RandomLatency HardwareBench::random(bool sealing, std::chrono::milliseconds time) {
    impl_->slow = true;
    auto samples = impl_->run(impl_->ask_random(sealing, Steady::now() + time), "asking for random bytes");
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) {
        return samples.empty() ? 0 : samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
    };
    return {.p50_us = at(0.5), .p99_us = at(0.99)};
}

} // namespace bench
