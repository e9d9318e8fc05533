#include "measure.hpp"

#include "engine/engine.hpp"
#include "tpm/commands.hpp"
#include "util/fd.hpp"
#include "util/file_watch.hpp"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <exception>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <mutex>
#include <stdexcept>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <thread>
#include <unistd.h>

extern "C" {
#include <libtpms/tpm_error.h>
#include <libtpms/tpm_library.h>
}

namespace bench {

using namespace vtpmd;
using Clock = std::chrono::steady_clock;

namespace {

constexpr std::uint32_t nv_index = 0x01500010;
constexpr std::uint16_t nv_size = 32;

double us(Clock::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }

Latency latency(std::vector<double>& samples) {
    if (samples.empty()) {
        return {};
    }
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) {
        return samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
    };
    return {.p50_us = at(0.50), .p99_us = at(0.99)};
}

/// Times `call` as often as a round-trip measurement does.
template <typename Call>
Latency timed(const Extent& extent, Call call) {
    std::vector<double> samples;
    for (std::size_t i = 0; i < extent.blocks * extent.trips_per_block; ++i) {
        const auto begin = Clock::now();
        call();
        samples.push_back(us(Clock::now() - begin));
    }
    return latency(samples);
}

void fsync_file(const std::filesystem::path& path) {
    const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd || fsync(fd.get()) != 0) {
        throw std::runtime_error(fmt::format("fsync of {} failed", path.string()));
    }
}

/// Flushes of the disk below `path` so far; nothing of a file system that has none.
std::optional<double> flushes_below(const std::filesystem::path& path) {
    struct stat file {};
    if (stat(path.c_str(), &file) != 0) {
        return std::nullopt;
    }
    const auto disk = fmt::format("/sys/dev/block/{}:{}", major(file.st_dev), minor(file.st_dev));
    // A partition's own count stays at 0; the disk's is a directory above.
    const bool part = std::filesystem::exists(disk + "/partition");
    std::ifstream in(disk + (part ? "/../stat" : "/stat"));
    std::vector<double> fields{std::istream_iterator<double>(in), {}};
    constexpr std::size_t flushes = 15; // Documentation/block/stat.rst of the kernel
    return fields.size() > flushes ? std::optional(fields[flushes]) : std::nullopt;
}

/// One writing client: writes until told to stop, counts the answers.
class NvWriter {
  public:
    NvWriter(Writer writer, std::size_t n)
        : sync_(writer.sync)
        , client_(writer.fleet->connect(n)) {
        if (sync_ != ClientSync::none) {
            unsynced_ = writer.fleet->unsynced_state(n);
        }
        (void)client_->exchange(nv_define(nv_index, nv_size)); // an error from the second time on
        write();
    }
    void write() {
        std::array<std::byte, nv_size> data{};
        for (std::size_t i = 0; i < sizeof counter_; ++i) {
            data[i] = static_cast<std::byte>(counter_ >> (8 * i));
        }
        ++counter_;
        client_->must(nv_write(nv_index, data));
        if (unsynced_) {
            fsync_file(*unsynced_);
            if (sync_ == ClientSync::file_and_directory) {
                fsync_file(unsynced_->parent_path());
            }
        }
    }

  private:
    ClientSync sync_;
    std::unique_ptr<Client> client_;
    std::optional<std::filesystem::path> unsynced_;
    std::uint64_t counter_ = static_cast<std::uint64_t>(Clock::now().time_since_epoch().count());
};

/// All of them write for `time`, each in its thread; answers per second.
double write_together(std::vector<std::unique_ptr<NvWriter>>& writers, std::chrono::milliseconds time) {
    std::atomic<bool> stop = false;
    std::atomic<std::uint64_t> answers = 0;
    std::exception_ptr failure;
    std::mutex failure_mutex;
    std::barrier ready(static_cast<std::ptrdiff_t>(writers.size()) + 1);
    std::vector<std::thread> threads;
    for (auto& w : writers) {
        threads.emplace_back([&, writer = w.get()] {
            ready.arrive_and_wait();
            try {
                for (; !stop; ++answers) {
                    writer->write();
                }
            } catch (...) {
                const std::lock_guard lock(failure_mutex);
                failure = std::current_exception();
                stop = true;
            }
        });
    }
    ready.arrive_and_wait();
    const auto begin = Clock::now();
    while (!stop && Clock::now() - begin < time) {
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    const std::uint64_t count = answers;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    stop = true;
    for (auto& t : threads) {
        t.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
    return static_cast<double>(count) / seconds;
}

TPM_RESULT no_nvram_init() { return TPM_SUCCESS; }
TPM_RESULT no_load(unsigned char** data, std::uint32_t* length, std::uint32_t /*tpm*/, const char* /*name*/) {
    *data = nullptr;
    *length = 0;
    return TPM_RETRY;
}
TPM_RESULT no_store(const unsigned char* /*data*/, std::uint32_t /*length*/, std::uint32_t /*tpm*/,
                    const char* /*name*/) {
    return TPM_SUCCESS;
}
TPM_RESULT no_delete(std::uint32_t /*tpm*/, const char* /*name*/, TPM_BOOL /*must_exist*/) { return TPM_SUCCESS; }

} // namespace

Extent Extent::quick() {
    Extent e;
    e.blocks = 4;
    e.trips_per_block = 250;
    e.paused_trips_per_block = 25;
    e.nv_rounds = 1;
    e.nv_time = std::chrono::milliseconds(400);
    e.many = 8;
    e.starts = 3;
    e.idle = 5;
    e.hardware_time = std::chrono::milliseconds(500);
    e.vtpms = 1000;
    e.groups = 5;
    e.lists = 10;
    e.shows = 100;
    e.creates = 50;
    e.restarts = 1;
    return e;
}

std::vector<Latency> round_trips(const std::vector<Fleet*>& fleets, ByteView command, const Extent& extent,
                                 std::chrono::microseconds pause) {
    const bool paused = pause != std::chrono::microseconds{};
    const std::size_t trips = paused ? extent.paused_trips_per_block : extent.trips_per_block;
    std::vector<std::unique_ptr<Client>> clients;
    std::vector<std::vector<double>> samples(fleets.size());
    std::vector<double> cpu(fleets.size());
    for (Fleet* f : fleets) {
        clients.push_back(f->connect(0));
        for (std::size_t i = 0; i < extent.trips_per_block; ++i) {
            clients.back()->must(command); // warm
        }
    }
    for (std::size_t block = 0; block < extent.blocks; ++block) {
        for (std::size_t k = 0; k < fleets.size(); ++k) {
            const double before = cpu_of(*fleets[k], 1);
            for (std::size_t i = 0; i < trips; ++i) {
                if (paused) {
                    std::this_thread::sleep_for(pause);
                }
                const auto begin = Clock::now();
                clients[k]->must(command);
                samples[k].push_back(us(Clock::now() - begin));
            }
            cpu[k] += cpu_of(*fleets[k], 1) - before;
        }
    }
    std::vector<Latency> out;
    for (std::size_t k = 0; k < fleets.size(); ++k) {
        out.push_back(latency(samples[k]));
        out.back().cpu_us = cpu[k] / static_cast<double>(extent.blocks * trips) * 1e6;
    }
    return out;
}

Latency engine_calls(ByteView command, const Extent& extent) {
    auto engine = Engine::create(TpmVersion::tpm20).value();
    engine->power_on({}).value();
    (void)engine->execute(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), 0);
    return timed(extent, [&] { (void)engine->execute(command, 0); });
}

Latency registers_taken(const Extent& extent) {
    auto engine = Engine::create(TpmVersion::tpm20).value();
    engine->power_on({}).value();
    (void)engine->execute(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear), 0);
    return timed(extent, [&] { (void)engine->snapshot(); });
}

Latency direct_calls(ByteView command, const Extent& extent) {
    libtpms_callbacks callbacks{};
    callbacks.sizeOfStruct = sizeof callbacks;
    callbacks.tpm_nvram_init = no_nvram_init;
    callbacks.tpm_nvram_loaddata = no_load;
    callbacks.tpm_nvram_storedata = no_store;
    callbacks.tpm_nvram_deletename = no_delete;
    if (TPMLIB_RegisterCallbacks(&callbacks) != TPM_SUCCESS ||
        TPMLIB_ChooseTPMVersion(TPMLIB_TPM_VERSION_2) != TPM_SUCCESS || TPMLIB_MainInit() != TPM_SUCCESS) {
        throw std::runtime_error("libtpms does not start in this process");
    }
    unsigned char* answer = nullptr;
    std::uint32_t size = 0;
    std::uint32_t capacity = 0;
    const auto call = [&](ByteView c) {
        Bytes copy = to_bytes(c); // libtpms may write to it
        if (TPMLIB_Process(&answer, &size, &capacity, uchar_ptr(MutByteView(copy)),
                           static_cast<std::uint32_t>(copy.size())) != TPM_SUCCESS) {
            throw std::runtime_error("TPMLIB_Process failed");
        }
    };
    call(tpm::startup_command(TpmVersion::tpm20, tpm::StartupMode::clear));
    const Latency out = timed(extent, [&] { call(command); });
    TPMLIB_Terminate();
    std::free(answer);
    return out;
}

std::vector<NvRate> nv_rates(const std::vector<Writer>& writers, std::size_t count, const std::filesystem::path& dir,
                             const Extent& extent) {
    std::vector<NvRate> out(writers.size());
    for (std::size_t round = 0; round < extent.nv_rounds; ++round) {
        for (std::size_t k = 0; k < writers.size(); ++k) {
            // swtpm serves one connection at a time, so each measurement has its own
            std::vector<std::unique_ptr<NvWriter>> clients;
            for (std::size_t n = 0; n < count; ++n) {
                clients.push_back(std::make_unique<NvWriter>(writers[k], n));
            }
            const double before = cpu_of(*writers[k].fleet, count);
            const auto flushed = flushes_below(dir);
            const double rate = write_together(clients, extent.nv_time);
            const double cpu = cpu_of(*writers[k].fleet, count) - before;
            const double writes = rate * std::chrono::duration<double>(extent.nv_time).count();
            out[k].per_second += rate / static_cast<double>(extent.nv_rounds);
            out[k].cpu_us += cpu / writes * 1e6 / static_cast<double>(extent.nv_rounds);
            const auto now = flushes_below(dir);
            out[k].flushes += flushed && now ? (*now - *flushed) / writes / static_cast<double>(extent.nv_rounds) : -1;
        }
    }
    return out;
}

Latency disk_sync(const std::filesystem::path& dir, const Extent& extent) {
    const UniqueFd fd(open((dir / "sync").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const Bytes page(4096);
    std::vector<double> samples;
    const std::size_t times = 50 * extent.nv_rounds;
    for (std::size_t i = 0; i < times; ++i) {
        const auto begin = Clock::now();
        if (pwrite(fd.get(), page.data(), page.size(), 0) != static_cast<ssize_t>(page.size()) ||
            fdatasync(fd.get()) != 0) {
            throw std::runtime_error(fmt::format("cannot write in {}", dir.string()));
        }
        samples.push_back(us(Clock::now() - begin));
    }
    return latency(samples);
}

Latency watch_cost(const std::filesystem::path& dir, const Extent& extent) {
    const std::string path = (dir / "watched").string();
    const UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    const Bytes page(4096);
    if (pwrite(fd.get(), page.data(), page.size(), 0) != static_cast<ssize_t>(page.size())) {
        throw std::runtime_error(fmt::format("cannot write in {}", dir.string()));
    }
    FileWatch watch(fd.get(), path);
    return timed(extent, [&] {
        watch.may_write().value();
        watch.wrote(0, page);
        watch.check(page.size()).value();
    });
}

std::vector<Latency> start_times(const std::vector<Fleet*>& fleets, const Extent& extent) {
    const Bytes command = tpm::get_random_command(TpmVersion::tpm20, 16);
    std::vector<std::vector<double>> samples(fleets.size());
    for (std::size_t i = 0; i < extent.starts; ++i) {
        for (std::size_t k = 0; k < fleets.size(); ++k) {
            fleets[k]->stop(0);
            const auto begin = Clock::now();
            fleets[k]->start(0);
            fleets[k]->connect(0)->must(command);
            samples[k].push_back(us(Clock::now() - begin));
        }
    }
    std::vector<Latency> out;
    for (auto& s : samples) {
        out.push_back(latency(s));
    }
    return out;
}

std::vector<Latency> migration_times(const std::vector<Hosts>& pairs, const Extent& extent) {
    const Bytes command = tpm::get_random_command(TpmVersion::tpm20, 16);
    std::vector<std::vector<double>> samples(pairs.size());
    for (std::size_t i = 0; i < extent.starts; ++i) {
        for (std::size_t k = 0; k < pairs.size(); ++k) {
            pairs[k].from->start(i);
            const auto old = pairs[k].from->attach(i);
            old->power_on();
            old->start_up();
            old->must(nv_define(nv_index, nv_size));
            old->must(nv_write(nv_index, Bytes(nv_size)));
            old->must(extend_16());
            pairs[k].to->start(i);
            const auto now = pairs[k].to->attach(i);
            const auto begin = Clock::now();
            now->state_in(old->state_out());
            now->power_on();
            now->must(command);
            samples[k].push_back(us(Clock::now() - begin));
            pairs[k].from->stop(i);
            pairs[k].to->stop(i);
        }
    }
    std::vector<Latency> out;
    for (auto& s : samples) {
        out.push_back(latency(s));
    }
    return out;
}

double cpu_of(Fleet& fleet, std::size_t count) {
    double sum = fleet.shared() == nullptr ? 0 : fleet.shared()->cpu_seconds();
    for (std::size_t n = 0; n < count; ++n) {
        sum += fleet.process(n).cpu_seconds();
    }
    return sum;
}

Memory memory(Fleet& fleet, std::size_t count) {
    Memory out;
    for (std::size_t n = 0; n < count; ++n) {
        const auto pss = fleet.process(n).pss_kib();
        if (!pss) {
            return {-1, -1, -1};
        }
        out.vtpm_kib += *pss / static_cast<double>(count);
    }
    const double before = cpu_of(fleet, count);
    std::this_thread::sleep_for(std::chrono::seconds(1));
    out.idle_cpu = cpu_of(fleet, count) - before;
    if (fleet.shared() != nullptr) {
        out.shared_kib = fleet.shared()->pss_kib().value_or(-1);
    }
    return out;
}

} // namespace bench
