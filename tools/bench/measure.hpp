// The measurements. Each compares fleets in alternating short blocks, so that what else the machine does meets them alike.
#pragma once

#include "subject.hpp"

#include <cstddef>
#include <vector>

namespace bench {

/// How much of everything: a full run takes a few minutes, a quick one some seconds.
struct Extent {
    std::size_t blocks = 20; ///< alternations of a round-trip measurement
    std::size_t trips_per_block = 2000;
    std::size_t paused_trips_per_block = 100;
    std::size_t nv_rounds = 3; ///< alternations of an NV measurement
    std::chrono::milliseconds nv_time{3000};
    std::size_t many = 64; ///< vTPMs that write together
    std::size_t starts = 20;
    std::size_t idle = 50;                         ///< vTPMs running while memory is measured
    std::chrono::milliseconds hardware_time{3000}; ///< of each measurement with a slow hardware TPM
    std::size_t vtpms = 20'000;                    ///< registered while management is measured
    std::size_t groups = 100;
    std::size_t lists = 50;
    std::size_t shows = 2000;
    std::size_t creates = 500;
    std::size_t restarts = 5;
    static Extent quick();
};

struct Latency {
    double p50_us = 0;
    double p99_us = 0;
    double cpu_us = 0; ///< of round trips: processor time of the TPM's side for one
};
/// One entry per fleet, in their order. Every fleet has vTPM 0 running. The client blocks in each system call, as all
/// clients do, and sleeps for `pause` between two commands.
std::vector<Latency> round_trips(const std::vector<Fleet*>& fleets, ByteView command, const Extent& extent,
                                 std::chrono::microseconds pause = {});
/// libtpms called directly in this process, without an engine round it.
Latency direct_calls(ByteView command, const Extent& extent);
/// The same through vtpmd's engine.
Latency engine_calls(ByteView command, const Extent& extent);
/// What each change costs besides, so that it can be taken back: the registers, read before it.
Latency registers_taken(const Extent& extent);

/// What the client does after each answer so that the change outlives a power failure: nothing (the TPM did it, or nobody
/// does), an fsync of the state file, or also one of its directory, without which the file's rename may be lost.
enum class ClientSync { none, file, file_and_directory };

/// A fleet and what makes its answers durable.
struct Writer {
    Fleet* fleet = nullptr;
    ClientSync sync = ClientSync::none;
};
struct NvRate {
    double per_second = 0;
    double cpu_us = 0;  ///< CPU time of the TPMs' processes for one write, without the client's
    double flushes = 0; ///< of the whole disk for one write, whoever asked for them; negative if it does not count them
};
/// Answered TPM2_NV_Write commands, all together, with vTPMs 0..count-1 running. Every write changes data. Their state is in
/// `dir`.
std::vector<NvRate> nv_rates(const std::vector<Writer>& writers, std::size_t count, const std::filesystem::path& dir,
                             const Extent& extent);
/// 4 KiB written and synced to a file in `dir`: what one durable write costs here at least.
Latency disk_sync(const std::filesystem::path& dir, const Extent& extent);
/// What a durable write costs beside, since the file is looked for at its path (util/file_watch.hpp).
Latency watch_cost(const std::filesystem::path& dir, const Extent& extent);

/// From starting the process to its first answer, with state from an earlier run; vTPM 0 of each fleet is stopped and
/// started again and runs afterwards.
std::vector<Latency> start_times(const std::vector<Fleet*>& fleets, const Extent& extent);

/// What of a live migration is the vTPM's: from asking the old host for its state to the first answer on the new one, whose process
/// was there before. One vTPM after another, each with an NV index and a PCR of its own. The fleets of old_host and new_host.
struct Hosts {
    Fleet* from = nullptr;
    Fleet* to = nullptr;
};
std::vector<Latency> migration_times(const std::vector<Hosts>& pairs, const Extent& extent);

struct Memory {
    double vtpm_kib = 0;   ///< average PSS of one vTPM's process
    double shared_kib = 0; ///< PSS of what serves them all
    double idle_cpu = 0;   ///< CPU used by all of them in one second of idleness, as a part of one CPU
};
/// CPU time that vTPMs 0..count-1 and what serves them all used so far, in seconds.
double cpu_of(Fleet& fleet, std::size_t count);
/// Of vTPMs 0..count-1, which run. Negative if the kernel does not tell.
Memory memory(Fleet& fleet, std::size_t count);

} // namespace bench
