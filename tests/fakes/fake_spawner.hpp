// Processes that end as the test says.
#pragma once

#include "manager/instances/child_process.hpp"

#include <csignal>
#include <set>

namespace vtpmd::fakes {

using manager::Child;
using manager::ExitStatus;
using manager::Spawner;

struct FakeProcess {
    explicit FakeProcess(asio::any_io_executor e)
        : ended(std::move(e), asio::steady_timer::time_point::max()) {}
    void end(ExitStatus how) {
        status = how;
        ended.cancel();
    }
    pid_t pid = 0;
    std::vector<std::string> arguments;
    UniqueFd inherited;
    std::vector<int> signals;
    bool obedient = true; ///< ends on SIGTERM
    std::optional<ExitStatus> status;
    std::string last_words;
    asio::steady_timer ended;
};

class FakeChild final : public Child {
  public:
    explicit FakeChild(std::shared_ptr<FakeProcess> p)
        : p_(std::move(p)) {}
    [[nodiscard]] pid_t pid() const override { return p_->pid; }
    Task<Result<ExitStatus>> wait() override {
        if (!p_->status) {
            (void)co_await p_->ended.async_wait(use_tuple);
        }
        if (!p_->status) {
            co_return make_error(Errc::canceled, "cancelled");
        }
        co_return *p_->status;
    }
    void signal(int number) override {
        p_->signals.push_back(number);
        if (number == SIGKILL || (number == SIGTERM && p_->obedient)) {
            p_->end({.code = 0, .signal = number == SIGKILL ? SIGKILL : 0});
        }
    }

    [[nodiscard]] manager::ProcessHandle handle() const override { return {.pid = p_->pid, .pidfd = nullptr}; }
    [[nodiscard]] std::string last_words() const override { return p_->last_words; }

  private:
    std::shared_ptr<FakeProcess> p_;
};

class FakeSpawner final : public Spawner {
  public:
    explicit FakeSpawner(asio::any_io_executor e)
        : executor(std::move(e)) {}
    Result<std::unique_ptr<Child>> spawn(const std::string&, const std::vector<std::string>& arguments,
                                         UniqueFd inherited) override {
        if (refuse) {
            return make_error(Errc::unavailable, "no memory");
        }
        auto p = std::make_shared<FakeProcess>(executor);
        p->pid = static_cast<pid_t>(1000 + processes.size());
        p->arguments = arguments;
        p->inherited = std::move(inherited);
        p->obedient = obedient;
        processes.push_back(p);
        return std::make_unique<FakeChild>(p);
    }
    std::unique_ptr<Child> adopt(manager::ProcessHandle process) override {
        auto p = std::make_shared<FakeProcess>(executor);
        p->pid = process.pid;
        p->obedient = obedient;
        adopted.push_back(p);
        return std::make_unique<FakeChild>(p);
    }
    bool image_in_use(const std::string& path) override { return in_use.contains(path); }
    bool image_exists(const std::string& path) override { return images.contains(path); }

    asio::any_io_executor executor;
    std::vector<std::shared_ptr<FakeProcess>> processes;
    std::vector<std::shared_ptr<FakeProcess>> adopted;
    std::set<std::string> in_use, images;
    bool refuse = false;
    bool obedient = true;
};

} // namespace vtpmd::fakes
