// Every cell of the table in store/journal_state.hpp.
#include "store/journal_state.hpp"

#include "check.hpp"

#include <array>

namespace store_journal_state_test {

using namespace vtpmd::store;

TEST_SUITE("store") {
    TEST_CASE("journal state: every event in every state") {
        using enum Writability;
        using Cell = std::optional<Writability>;
        constexpr Cell no = std::nullopt;
        static constexpr std::array states{unopened,         appendable,         needs_checkpoint,
                                           other_half_alive, superblock_unknown, stopped};
        struct Row {
            JournalEvent event;
            std::array<Cell, states.size()> after;
        };
        const std::array rows{
            Row{JournalEvent::opened, {appendable, no, no, no, no, no}},
            Row{JournalEvent::set_aside, {needs_checkpoint, no, no, no, no, no}},
            Row{JournalEvent::write_failed, {no, needs_checkpoint, no, no, no, no}},
            Row{JournalEvent::checkpoint_begun, {needs_checkpoint, needs_checkpoint, needs_checkpoint, no, no, no}},
            Row{JournalEvent::checkpoint_whole, {no, no, other_half_alive, no, no, no}},
            Row{JournalEvent::other_forgotten, {no, no, no, appendable, no, no}},
            Row{JournalEvent::resize_begun, {no, superblock_unknown, no, no, superblock_unknown, no}},
            Row{JournalEvent::superblock_done,
                {unopened, appendable, needs_checkpoint, other_half_alive, appendable, stopped}},
            Row{JournalEvent::image_lost,
                {no, needs_checkpoint, needs_checkpoint, needs_checkpoint, needs_checkpoint, no}},
            Row{JournalEvent::fault, {stopped, stopped, stopped, stopped, stopped, stopped}},
        };
        for (const Row& row : rows) {
            for (std::size_t i = 0; i < states.size(); ++i) {
                CAPTURE(static_cast<int>(row.event));
                CAPTURE(i);
                CHECK((next(states[i], row.event) == row.after[i]));
            }
        }
        CHECK(trouble(unopened).empty());
        CHECK(trouble(appendable).empty());
        for (const Writability s : {needs_checkpoint, other_half_alive, superblock_unknown, stopped}) {
            CHECK_FALSE(trouble(s).empty());
        }
    }
}

} // namespace store_journal_state_test
