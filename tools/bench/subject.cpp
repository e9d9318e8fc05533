#include "subject.hpp"

#include <algorithm>
#include <fmt/format.h>
#include <stdexcept>

namespace bench {

namespace fs = std::filesystem;

namespace {

constexpr std::chrono::seconds subject_patience{20};

class Base : public Fleet {
  public:
    Base(const Programs& programs, fs::path dir)
        : programs_(programs)
        , dir_(std::move(dir)) {}

    void stop(std::size_t n) override { processes_.at(n).stop(); }
    Process& process(std::size_t n) override { return processes_.at(n); }
    std::unique_ptr<Client> connect(std::size_t n) override {
        try {
            return std::make_unique<Client>(socket(n), subject_patience);
        } catch (const std::exception& e) {
            throw std::runtime_error(fmt::format("{} {}: {}\n{}", name(), n, e.what(), processes_.at(n).complaint()));
        }
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

    const Programs& programs_;
    fs::path dir_;
    std::vector<Process> processes_;
};

class Ours final : public Base {
  public:
    Ours(const Programs& programs, const fs::path& dir)
        : Base(programs, dir) {
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
        run(n, {programs_.vtpmd, "--mode=instance", fmt::format("--uuid=00000000-0000-4000-8000-{:012x}", n),
                "--manager=unix:" + listen().string(), "--state=" + (dir_ / fmt::format("{}.img", n)).string(),
                "--create", "--guest=socket:unix:" + socket(n).string()});
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
        run(n, {programs_.swtpm, "socket", "--tpm2", "--tpmstate", "dir=" + state(n).string(), "--server",
                "type=unixio,path=" + socket(n).string(), "--flags", "not-need-init,startup-clear"});
    }
    [[nodiscard]] std::optional<fs::path> unsynced_state(std::size_t n) const override {
        return state(n) / "tpm2-00.permall";
    }

  private:
    [[nodiscard]] fs::path state(std::size_t n) const { return dir_ / fmt::format("{}.d", n); }
};

} // namespace

std::unique_ptr<Fleet> make_ours(const Programs& programs, const fs::path& dir) {
    return std::make_unique<Ours>(programs, dir);
}
std::unique_ptr<Fleet> make_swtpm(const Programs& programs, const fs::path& dir) {
    return std::make_unique<Swtpm>(programs, dir);
}

} // namespace bench
