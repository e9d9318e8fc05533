// The life of an instance under supervision. Pure: the supervisor tells it what happened and does what it says.
//
//   in        | on             | next     | what is to be done
//   ----------+----------------+----------+--------------------
//   looking   | image_free     |          | start
//             | image_used     | unknown  | pause
//             | met            | adopted  | watch
//             | started        | child    | watch
//             | not_started    | waiting  | pause
//             | released       | ended    | finish
//   unknown   | image_free     | looking  | start
//             | image_used     |          | pause
//             | met            | adopted  | watch
//             | pause_over     |          | look
//             | released       | leaving  | look
//   child,    | ended          | waiting  | pause
//   adopted   | ended_for_good | given_up | finish
//             | released       | ending   | signal
//   waiting   | met            | adopted  | watch
//             | pause_over     | looking  | look
//             | released       | ended    | finish
//   leaving   | image_free     | ended    | finish
//             | image_used     |          | pause
//             | met            | ending   | signal
//             | pause_over     |          | look
//   ending    | ended, ended_for_good | ended | finish
//   given_up  | released       | ended    |
//
// Everything else changes nothing and asks for nothing; out of `ended` there is no way.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace vtpmd::manager {

class ManagedInstance {
  public:
    enum class State : std::uint8_t {
        looking, ///< whether a process has its image
        unknown, ///< one has, which an earlier manager or somebody else started, and which did not come to this manager yet
        child,    ///< a process of this manager's
        adopted,  ///< a process that was there already, and is known
        waiting,  ///< for the next start
        leaving,  ///< it is wanted no more; its process is not known yet
        ending,   ///< it is wanted no more; its process was asked to end
        ended,    ///< it is wanted no more, and has no process
        given_up, ///< it is wanted, but starting it again would not help
    };
    static constexpr std::size_t state_count = 9;
    enum class Event : std::uint8_t {
        image_free,     ///< what `look` found
        image_used,     ///< the same
        met,            ///< the process that has the image is known
        started,        ///< what `start` came to
        not_started,    ///< the same
        ended,          ///< the process; it may be started again
        ended_for_good, ///< the process, for a reason that another start would not cure
        pause_over,
        released, ///< it is wanted no more
    };
    static constexpr std::size_t event_count = 9;
    enum class Action : std::uint8_t {
        none,
        look,   ///< whether a process has the image
        start,  ///< a process
        watch,  ///< the process, until it ends
        signal, ///< SIGTERM to the process, and watch it
        pause,  ///< until there is news, or it is time to look again or to start again
        finish, ///< the supervisor has nothing more to do
    };

    [[nodiscard]] State state() const noexcept { return state_; }
    Action on(Event event) noexcept;

  private:
    struct Cell {
        State next;
        Action action = Action::none;
    };
    State state_ = State::looking;
};

inline ManagedInstance::Action ManagedInstance::on(Event event) noexcept {
    using S = State;
    using A = Action;
    // In the order of the enumerations, as above.
    static constexpr std::array<std::array<Cell, event_count>, state_count> table{{
        {{{S::looking, A::start},
          {S::unknown, A::pause},
          {S::adopted, A::watch},
          {S::child, A::watch},
          {S::waiting, A::pause},
          {S::looking},
          {S::looking},
          {S::looking},
          {S::ended, A::finish}}},
        {{{S::looking, A::start},
          {S::unknown, A::pause},
          {S::adopted, A::watch},
          {S::unknown},
          {S::unknown},
          {S::unknown},
          {S::unknown},
          {S::unknown, A::look},
          {S::leaving, A::look}}},
        {{{S::child},
          {S::child},
          {S::child},
          {S::child},
          {S::child},
          {S::waiting, A::pause},
          {S::given_up, A::finish},
          {S::child},
          {S::ending, A::signal}}},
        {{{S::adopted},
          {S::adopted},
          {S::adopted},
          {S::adopted},
          {S::adopted},
          {S::waiting, A::pause},
          {S::given_up, A::finish},
          {S::adopted},
          {S::ending, A::signal}}},
        {{{S::waiting},
          {S::waiting},
          {S::adopted, A::watch},
          {S::waiting},
          {S::waiting},
          {S::waiting},
          {S::waiting},
          {S::looking, A::look},
          {S::ended, A::finish}}},
        {{{S::ended, A::finish},
          {S::leaving, A::pause},
          {S::ending, A::signal},
          {S::leaving},
          {S::leaving},
          {S::leaving},
          {S::leaving},
          {S::leaving, A::look},
          {S::leaving}}},
        {{{S::ending},
          {S::ending},
          {S::ending},
          {S::ending},
          {S::ending},
          {S::ended, A::finish},
          {S::ended, A::finish},
          {S::ending},
          {S::ending}}},
        {{{S::ended}, {S::ended}, {S::ended}, {S::ended}, {S::ended}, {S::ended}, {S::ended}, {S::ended}, {S::ended}}},
        {{{S::given_up},
          {S::given_up},
          {S::given_up},
          {S::given_up},
          {S::given_up},
          {S::given_up},
          {S::given_up},
          {S::given_up},
          {S::ended}}},
    }};
    const Cell cell = table[static_cast<std::size_t>(state_)][static_cast<std::size_t>(event)];
    state_ = cell.next;
    return cell.action;
}

[[nodiscard]] constexpr std::string_view to_string(ManagedInstance::State s) noexcept {
    constexpr std::array<std::string_view, ManagedInstance::state_count> names{
        "looking", "unknown", "child", "adopted", "waiting", "leaving", "ending", "ended", "given up"};
    return names[static_cast<std::size_t>(s)];
}

} // namespace vtpmd::manager
