// What can be on a disk after power went: a fair choice of all the possibilities.
#pragma once

#include "fault_file.hpp"

#include <fmt/format.h>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace vtpmd::test {

struct CrashImage {
    Bytes content;
    std::string how;
};

inline std::vector<CrashImage> crash_images(const FaultDisk& disk, std::size_t seeds = 6) {
    using Loss = FaultDisk::Loss;
    std::vector<CrashImage> out;
    std::set<Bytes> seen;
    auto add = [&](Loss loss, std::size_t parameter, std::string how) {
        Bytes content = disk.after_crash(loss, parameter);
        if (seen.insert(content).second) {
            out.push_back({std::move(content), std::move(how)});
        }
    };
    add(Loss::all, 0, "nothing unsynced is there");
    add(Loss::none, 0, "everything is there");
    const std::size_t size = disk.last_write_size();
    // The edges of sectors, of what ends a frame or a superblock, and a few bytes in between.
    for (const std::size_t cut :
         {1, 7, 8, 40, 63, 64, 65, 300, 495, 496, 497, 505, 511, 512, 513, 1000, 1024, 4095, 4096}) {
        for (const std::size_t n : {cut, size - cut}) {
            if (n < size) {
                add(Loss::prefix, n, fmt::format("the first {} of {} bytes of the last write are there", n, size));
            }
        }
    }
    for (std::size_t seed = 1; seed <= seeds; ++seed) {
        add(Loss::sectors, seed, fmt::format("some of the unsynced sectors are there (seed {})", seed));
    }
    return out;
}

} // namespace vtpmd::test
