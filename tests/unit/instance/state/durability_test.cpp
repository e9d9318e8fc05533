#include "instance/state/durability.hpp"

#include <doctest/doctest.h>
#include <optional>

namespace instance_durability_test {

using namespace vtpmd;
using namespace vtpmd::instance;

TEST_SUITE("instance") {
    TEST_CASE("durability: every cell") {
        using D = Durability;
        using E = DurabilityEvent;
        const D states[] = {D::durable, D::committing, D::in_doubt, D::unavailable, D::lost};
        struct Row {
            E event;
            std::optional<D> to[5];
        };
        const auto never = std::optional<D>{};
        const Row rows[] = {
            {E::change, {D::committing, never, never, never, never}},
            {E::done, {D::durable, D::durable, D::durable, D::durable, D::lost}},
            {E::failed, {D::unavailable, D::unavailable, D::unavailable, D::unavailable, D::lost}},
            {E::no_answer, {D::in_doubt, D::in_doubt, D::in_doubt, D::in_doubt, D::lost}},
            {E::superseded, {D::lost, D::lost, D::lost, D::lost, D::lost}},
        };
        for (const Row& row : rows) {
            for (std::size_t i = 0; i < 5; ++i) {
                CAPTURE(static_cast<int>(row.event));
                CAPTURE(i);
                CHECK(next(states[i], row.event) == row.to[i]);
            }
        }
    }

    TEST_CASE("admission: every cell") {
        using D = Durability;
        using A = Admission;
        struct Row {
            D state;
            std::optional<A> harmless, changing;
        };
        const Row rows[] = {
            {D::durable, A::run, A::run},          {D::committing, {}, {}},     {D::in_doubt, A::watch, A::refuse},
            {D::unavailable, A::watch, A::refuse}, {D::lost, A::fail, A::fail},
        };
        for (const Row& row : rows) {
            CAPTURE(static_cast<int>(row.state));
            CHECK(admit(row.state, tpm::Effect::none) == row.harmless);
            CHECK(admit(row.state, tpm::Effect::permanent) == row.changing);
        }
    }
}

} // namespace instance_durability_test
