// Whether the manager's journal can be written, as an explicit machine. Pure; journal.cpp interprets it.
//
//   unopened          nothing of it was read yet
//   appendable        memory is what a restart would find, and the next batch goes behind the last
//   needs_checkpoint  a write or a sync failed: nobody knows what a restart would find before a checkpoint has succeeded. So
//                     too while a checkpoint is under way, and after an older program's record was set aside
//   other_half_alive  the newest checkpoint is whole, but the half before it is not given up yet
//   superblock_unknown  a write of the superblock failed while the store grew: nobody knows how large a half is
//   stopped           for good: the program has a fault, and must end
//
//   event \ state    | unopened   | appendable | needs_checkp. | other_half_alive | superblock_unk. | stopped
//   opened           | appendable | -          | -             | -                | -               | -
//   set_aside        | needs      | -          | -             | -                | -               | -
//   write_failed     | -          | needs      | -             | -                | -               | -
//   checkpoint_begun | needs      | needs      | needs         | -                | -               | -
//   checkpoint_whole | -          | -          | other_half    | -                | -               | -
//   other_forgotten  | -          | -          | -             | appendable       | -               | -
//   resize_begun     | -          | unknown    | -             | -                | unknown         | -
//   superblock_done  | unopened   | appendable | needs         | other_half       | appendable      | stopped
//   image_lost       | -          | needs      | needs         | needs            | needs           | -
//   fault            | stopped    | stopped    | stopped       | stopped          | stopped         | stopped
//
// "-": cannot happen. A checkpoint is begun only where the other half is not alive, so that there is always a whole one.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace vtpmd::store {

enum class Writability : std::uint8_t {
    unopened,
    appendable,
    needs_checkpoint,
    other_half_alive,
    superblock_unknown,
    stopped
};

enum class JournalEvent : std::uint8_t {
    opened,           ///< replayed; nothing was set aside
    set_aside,        ///< replayed, but for a record that could not follow: it must not stay on the disk
    write_failed,     ///< a batch
    checkpoint_begun, ///< the other half is written to
    checkpoint_whole, ///< its end is durable: it is the journal now
    other_forgotten,  ///< the older half is given up, durably
    resize_begun,     ///< a superblock with other halves is about to be written
    superblock_done,  ///< a superblock is durable
    image_lost,       ///< it was pulled away, or written over: all of it is to be written again
    fault             ///< what was written cannot be applied, or something threw
};

[[nodiscard]] constexpr std::optional<Writability> next(Writability s, JournalEvent e) {
    using enum Writability;
    switch (e) {
    case JournalEvent::opened:
        return s == unopened ? std::optional(appendable) : std::nullopt;
    case JournalEvent::set_aside:
        return s == unopened ? std::optional(needs_checkpoint) : std::nullopt;
    case JournalEvent::write_failed:
        return s == appendable ? std::optional(needs_checkpoint) : std::nullopt;
    case JournalEvent::checkpoint_begun:
        return s == unopened || s == appendable || s == needs_checkpoint ? std::optional(needs_checkpoint)
                                                                         : std::nullopt;
    case JournalEvent::checkpoint_whole:
        return s == needs_checkpoint ? std::optional(other_half_alive) : std::nullopt;
    case JournalEvent::other_forgotten:
        return s == other_half_alive ? std::optional(appendable) : std::nullopt;
    case JournalEvent::resize_begun:
        return s == appendable || s == superblock_unknown ? std::optional(superblock_unknown) : std::nullopt;
    case JournalEvent::superblock_done:
        return s == superblock_unknown ? appendable : s;
    case JournalEvent::image_lost:
        return s == unopened || s == stopped ? std::nullopt : std::optional(needs_checkpoint);
    case JournalEvent::fault:
        return stopped;
    }
    return std::nullopt;
}

/// What an operator is told; empty: all is well.
[[nodiscard]] constexpr std::string_view trouble(Writability s) {
    switch (s) {
    case Writability::unopened:
    case Writability::appendable:
        return {};
    case Writability::needs_checkpoint:
    case Writability::other_half_alive:
    case Writability::superblock_unknown:
        return "the store does not take writes at the moment";
    case Writability::stopped:
        return "the journal has stopped: nothing is kept any more";
    }
    return {};
}

} // namespace vtpmd::store
