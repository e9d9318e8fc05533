// Every cell of the table of an instance under supervision.
#include "manager/instances/managed_instance.hpp"

#include <array>
#include <doctest/doctest.h>
#include <optional>
#include <string>

namespace manager_managed_instance_test {

using namespace vtpmd::manager;

namespace {

using Machine = ManagedInstance;
using S = Machine::State;
using E = Machine::Event;
using A = Machine::Action;

struct Expected {
    S next;
    A action;
};
/// What does not stand here changes nothing and does nothing.
std::optional<Expected> expected(S state, E event) {
    switch (state) {
    case S::looking:
        switch (event) {
        case E::image_free:
            return Expected{S::looking, A::start};
        case E::image_used:
            return Expected{S::unknown, A::pause};
        case E::met:
            return Expected{S::adopted, A::watch};
        case E::started:
            return Expected{S::child, A::watch};
        case E::not_started:
            return Expected{S::waiting, A::pause};
        case E::released:
            return Expected{S::ended, A::finish};
        default:
            return std::nullopt;
        }
    case S::unknown:
        switch (event) {
        case E::image_free:
            return Expected{S::looking, A::start};
        case E::image_used:
            return Expected{S::unknown, A::pause};
        case E::met:
            return Expected{S::adopted, A::watch};
        case E::pause_over:
            return Expected{S::unknown, A::look};
        case E::released:
            return Expected{S::leaving, A::look};
        default:
            return std::nullopt;
        }
    case S::child:
    case S::adopted:
        switch (event) {
        case E::ended:
            return Expected{S::waiting, A::pause};
        case E::ended_for_good:
            return Expected{S::given_up, A::finish};
        case E::released:
            return Expected{S::ending, A::signal};
        default:
            return std::nullopt;
        }
    case S::waiting:
        switch (event) {
        case E::met:
            return Expected{S::adopted, A::watch};
        case E::pause_over:
            return Expected{S::looking, A::look};
        case E::released:
            return Expected{S::ended, A::finish};
        default:
            return std::nullopt;
        }
    case S::leaving:
        switch (event) {
        case E::image_free:
            return Expected{S::ended, A::finish};
        case E::image_used:
            return Expected{S::leaving, A::pause};
        case E::met:
            return Expected{S::ending, A::signal};
        case E::pause_over:
            return Expected{S::leaving, A::look};
        default:
            return std::nullopt;
        }
    case S::ending:
        return event == E::ended || event == E::ended_for_good ? std::optional(Expected{S::ended, A::finish})
                                                               : std::nullopt;
    case S::ended:
        return std::nullopt;
    case S::given_up:
        return event == E::released ? std::optional(Expected{S::ended, A::none}) : std::nullopt;
    }
    return std::nullopt;
}

/// A machine in `state`, by the shortest way there.
Machine in(S state) {
    Machine m;
    const auto tell = [&m](std::initializer_list<E> events) {
        for (const E e : events) {
            (void)m.on(e);
        }
    };
    switch (state) {
    case S::looking:
        break;
    case S::unknown:
        tell({E::image_used});
        break;
    case S::child:
        tell({E::image_free, E::started});
        break;
    case S::adopted:
        tell({E::met});
        break;
    case S::waiting:
        tell({E::not_started});
        break;
    case S::leaving:
        tell({E::image_used, E::released});
        break;
    case S::ending:
        tell({E::started, E::released});
        break;
    case S::ended:
        tell({E::released});
        break;
    case S::given_up:
        tell({E::started, E::ended_for_good});
        break;
    }
    return m;
}

} // namespace

TEST_SUITE("manager") {
    TEST_CASE("an instance under supervision: every cell of its table") {
        for (std::size_t s = 0; s < Machine::state_count; ++s) {
            for (std::size_t e = 0; e < Machine::event_count; ++e) {
                const auto state = static_cast<S>(s);
                const auto event = static_cast<E>(e);
                Machine m = in(state);
                REQUIRE(m.state() == state);
                const A action = m.on(event);
                const Expected want = expected(state, event).value_or(Expected{state, A::none});
                CAPTURE(std::string(to_string(state)));
                CAPTURE(e);
                CHECK(m.state() == want.next);
                CHECK(action == want.action);
            }
        }
    }
    TEST_CASE("an instance under supervision: once it is wanted no more, nothing is started") {
        for (std::size_t s = 0; s < Machine::state_count; ++s) {
            for (std::size_t first = 0; first < Machine::event_count; ++first) {
                for (std::size_t second = 0; second < Machine::event_count; ++second) {
                    Machine m = in(static_cast<S>(s));
                    (void)m.on(E::released);
                    for (const std::size_t e : {first, second}) {
                        const A action = m.on(static_cast<E>(e));
                        CHECK(action != A::start);
                        CHECK(action != A::watch);
                    }
                }
            }
        }
    }
}

} // namespace manager_managed_instance_test
