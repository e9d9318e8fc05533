#include "subject.hpp"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>
#include <type_traits>

namespace bench {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::seconds subject_patience{20};

class Base : public Fleet {
  public:
    Base(const Programs& programs, Place place)
        : programs_(programs)
        , place_(std::move(place))
        , dir_(place_.dir) {}

    void stop(std::size_t n) override { processes_.at(n).stop(); }
    Process& process(std::size_t n) override { return processes_.at(n); }
    std::unique_ptr<Client> connect(std::size_t n) override {
        return said_by(n, [&]() -> std::unique_ptr<Client> {
            if (place_.reach == Reach::socket) {
                return std::make_unique<Client>(socket(n), subject_patience);
            }
            auto model = std::make_unique<DeviceModel>(socket(n), subject_patience);
            model->power_on();
            model->start_up();
            return model;
        });
    }
    std::unique_ptr<DeviceModel> attach(std::size_t n) override {
        return said_by(n, [&] { return std::make_unique<DeviceModel>(socket(n), subject_patience); });
    }

  protected:
    [[nodiscard]] fs::path socket(std::size_t n) const { return dir_ / fmt::format("{}.sock", n); }
    void run(std::size_t n, const std::vector<std::string>& argv) {
        if (processes_.size() <= n) {
            processes_.resize(n + 1);
        }
        fs::remove(socket(n)); // what a killed process left would only be refused
        processes_[n] = Process(argv, dir_ / fmt::format("{}.log", n));
    }

    /// What `f` returns, or its error with what vTPM n's program said.
    template <typename F>
    std::invoke_result_t<F> said_by(std::size_t n, F f) {
        try {
            return f();
        } catch (const std::exception& e) {
            throw std::runtime_error(fmt::format("{} {}: {}\n{}", name(), n, e.what(), processes_.at(n).complaint()));
        }
    }

    const Programs& programs_;
    Place place_;
    fs::path dir_;
    std::vector<Process> processes_;
};

class Ours final : public Base {
  public:
    Ours(const Programs& programs, Place place)
        : Base(programs, std::move(place)) {
        fs::create_directory(dir_ / "root");
        manager_ = Process({programs_.vtpmd, "--mode=manager", "--store=" + (dir_ / "manager.img").string(), "--create",
                            "--tpm=embedded:" + (dir_ / "root").string(), "--seal-pcrs=none",
                            "--listen=unix:" + listen().string(), "--auto-create"},
                           dir_ / "manager.log");
        try {
            Client ready(listen(), subject_patience);
        } catch (const std::exception& e) {
            throw std::runtime_error(fmt::format("the manager: {}\n{}", e.what(), manager_.complaint()));
        }
    }
    ~Ours() override { processes_.clear(); } // the instances first: each says good-bye to the manager

    [[nodiscard]] std::string name() const override { return "vtpmd"; }
    void start(std::size_t n) override {
        std::vector<std::string> argv{programs_.vtpmd,
                                      "--mode=instance",
                                      fmt::format("--uuid=00000000-0000-4000-8000-{:012x}", n),
                                      "--manager=unix:" + listen().string(),
                                      "--state=" + (dir_ / fmt::format("{}.img", n)).string(),
                                      "--create",
                                      (place_.reach == Reach::socket ? "--guest=socket:unix:" : "--guest=qemu:") +
                                          socket(n).string()};
        if (place_.reach == Reach::old_host || place_.reach == Reach::new_host) {
            argv.push_back(fmt::format("--{}=unix:{}/{}.take",
                                       place_.reach == Reach::old_host ? "handover" : "incoming",
                                       place_.shared.string(), n));
        }
        run(n, argv);
    }
    Process* shared() override { return &manager_; }
    [[nodiscard]] std::optional<fs::path> unsynced_state(std::size_t /*n*/) const override { return std::nullopt; }

  private:
    [[nodiscard]] fs::path listen() const { return dir_ / "manager.sock"; }

    Process manager_;
};

class Swtpm final : public Base {
  public:
    using Base::Base;

    [[nodiscard]] std::string name() const override { return "swtpm"; }
    void start(std::size_t n) override {
        fs::create_directories(state(n));
        std::vector<std::string> argv{programs_.swtpm, "socket", "--tpm2", "--tpmstate", "dir=" + state(n).string()};
        const std::string where = "type=unixio,path=" + socket(n).string();
        if (place_.reach == Reach::socket) {
            argv.insert(argv.end(), {"--server", where, "--flags", "not-need-init,startup-clear"});
        } else {
            argv.insert(argv.end(), {"--ctrl", where});
        }
        run(n, argv);
    }
    [[nodiscard]] std::optional<fs::path> unsynced_state(std::size_t n) const override {
        return state(n) / "tpm2-00.permall";
    }

  private:
    [[nodiscard]] fs::path state(std::size_t n) const { return dir_ / fmt::format("{}.d", n); }
};

} // namespace

std::unique_ptr<Fleet> make_ours(const Programs& programs, Place place) {
    return std::make_unique<Ours>(programs, std::move(place));
}
std::unique_ptr<Fleet> make_swtpm(const Programs& programs, Place place) {
    return std::make_unique<Swtpm>(programs, std::move(place));
}

} // namespace bench
