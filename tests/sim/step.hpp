// What a run consists of. A run is a configuration and a list of steps, and nothing else: what a step does depends on its own
// numbers and on what was before it, so that a list stays a run when steps are taken out of it.
#pragma once

#include "random.hpp"
#include "util/result.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace vtpmd::sim {

enum class Kind : std::uint8_t {
    add,             ///< a guest's command that changes its TPM. a: vTPM, b: 1 the second instance
    read,            ///< one that does not
    start,           ///< an instance
    stop,            ///< in good order
    kill,            ///< SIGKILL
    twin,            ///< another instance of the same vTPM, on a copy of its image
    serve,           ///< the manager starts. b: 1 also with its recovery file
    end,             ///< in good order
    kill_manager,    ///
    power,           ///< goes, for all. b: what is lost, c: which of it
    create,          ///< a vTPM, in a group. b: group, c: name (0: none)
    remove,          ///
    rename,          ///< c: name
    move,            ///< b: group
    reset,           ///
    group_create,    ///< a: group
    group_remove,    ///
    group_update,    ///
    group_ca,        ///
    disk_fails,      ///< a: file, b: after so many operations, c: how
    disk_dies,       ///< with the power
    tpm_fails,       ///< b: after so many operations, c: how
    cut,             ///< the link of a vTPM's instance, for good
    mend,            ///
    snap,            ///< it breaks once
    hold_up,         ///< what is on it comes later
    let_go,          ///
    time,            ///< passes, a seconds
    copy_store,      ///< by cp. b: 1 by the manager's own backup
    old_store,       ///< the copy is put back, b: 1 opened with the recovery file
    copy_image,      ///
    old_image,       ///< put back, and started
    new_tpm,         ///< the hardware's; the store is opened with a recovery file, after one of a removed key was tried
    fill,            ///< b: what (register, save, rename, delete, reset), c: how many
    platform,        ///< a: another one is booted
    pull,            ///< a restore tool renames a copy over an image (a odd) or the store, while it is open
    grow,            ///< the store, to c KiB more or less
    hand_over,       ///< to another host, for good
    recovery_add,    ///< another recovery key
    recovery_remove, ///< a: which; never the last
    recovery_look,   ///< at a store that nobody has open, with each of their files
    count_           ///< how many there are
};

struct Step {
    static constexpr std::uint32_t until_idle = 9999;   ///< turns: until nothing is ready
    static constexpr std::uint32_t until_done = 10'000; ///< until what it began has ended, and time passes if need be
    Kind kind = Kind::time;
    std::uint32_t a = 0, b = 0, c = 0;
    std::uint32_t turns = until_done;
};

struct Config {
    std::uint32_t vtpms = 3;
    std::uint32_t groups = 2;
    std::uint32_t freshness = 1;         ///< 0 off, 1 window, 2 strict
    std::uint32_t created_freshness = 1; ///< the same, when the store is made
    std::uint32_t recovery = 0;          ///< with a recovery file
    std::uint32_t store_kib = 256;
    std::uint64_t chance = 1; ///< the seed of keys and nonces
};

struct Run {
    Config config;
    std::vector<Step> steps;
};

[[nodiscard]] std::string to_string(const Step& step);
[[nodiscard]] std::string to_string(const Config& config);
/// "config: steps", on one line.
[[nodiscard]] std::string to_string(const Run& run);
[[nodiscard]] Result<Run> parse_run(std::string_view text);
[[nodiscard]] Run make_run(std::uint64_t seed, std::uint32_t length);

} // namespace vtpmd::sim
