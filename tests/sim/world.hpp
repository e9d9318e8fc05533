// A host in one process: its files, its hardware TPM, the manager and the instances, each a Process with the real parts of the
// product in it. A step does something to it; after each step what can be seen must be what the model says.
#pragma once

#include "fake_root_of_trust.hpp"
#include "files.hpp"
#include "link.hpp"
#include "model.hpp"
#include "step.hpp"

#include "instance/instance.hpp"
#include "instance/state/open_vtpm.hpp"
#include "manager/ca/certifier.hpp"
#include "manager/groups/deep_quotes.hpp"
#include "manager/groups/groups.hpp"
#include "manager/links/key_service.hpp"

#include <list>

namespace vtpmd::sim {

struct Manager {
    Manager(Files& files, fakes::FakeTpm& tpm, const std::function<void(const std::string&)>& tell)
        : process("manager", tell)
        , root(tpm)
        , io(files, process)
        , place(manager::make_file_place(io, "manager.img", process.log))
        , tasks(process.executor(), process.log)
        , links(process.executor(), process.log) {}

    Process process;
    fakes::FakeRootOfTrust root;
    Io io;
    std::unique_ptr<manager::ImagePlace> place;
    std::unique_ptr<manager::Vault> vault;
    TaskGroup tasks, links;
    std::optional<manager::Groups> groups;
    std::optional<manager::DeepQuotes> quotes;
    std::optional<manager::Certifier> certifier;
    std::unique_ptr<manager::KeyService> service;
    bool opening = false, serving = false;
    bool trouble = false; ///< it has met, or may meet, a fault that was asked for
    std::optional<Error> refused, fatal;
    unsigned operations = 0;
};

struct Inst {
    Inst(std::size_t its_vtpm, bool is_twin, Files& files, const std::function<void(const std::string&)>& tell,
         std::function<std::uint64_t()> make)
        : vtpm(its_vtpm)
        , twin(is_twin)
        , process(fmt::format("vtpm{}{}", its_vtpm, is_twin ? "'" : ""), tell)
        , io(files, process)
        , engine(std::move(make)) {}

    void cut() const {
        for (const Link::Wire& wire : wires) {
            wire.cut();
        }
    }
    void hold_up(bool on) const {
        for (const Link::Wire& wire : wires) {
            wire.hold_up(on);
        }
    }

    const std::size_t vtpm;
    const bool twin;
    Process process;
    Io io;
    ModelEngine engine;
    std::unique_ptr<proto::ManagerClient> client;
    std::unique_ptr<store::StateImage> image;
    std::unique_ptr<instance::Instance> instance;
    std::vector<Link::Wire> wires; ///< the present one last; what is held up of those before it may still come
    bool booting = false, up = false, fresh = false;
    bool cut_off = false;
    bool held_up = false;
    bool stale = false; ///< another one has opened its vTPM since
    bool trouble = false;
    bool copied = false; ///< its image was, while a command was at it: the copy does not know of a withdrawal
    bool handing_over = false;
    bool hurt = false; ///< a command could not be made durable: it takes a while until one can
    std::optional<Error> refused;
    unsigned operations = 0;
};

/// Power went at an operation of a disk.
struct PowerGone {};

class World {
  public:
    World(Config config, std::string folder, bool loud);
    ~World();
    World(const World&) = delete;
    World& operator=(const World&) = delete;

    /// Throws Violation.
    void step(const Step& step);
    /// All faults end, and all that was acknowledged must be there: over a loss of power, and over a good end.
    void audit();

    [[nodiscard]] std::uint64_t trace() const { return trace_; }
    [[nodiscard]] const std::vector<std::string>& lines() const { return lines_; }

  private:
    struct StoreCopy {
        Bytes content;
        Model model;
        std::uint64_t steps = 0;
        bool level = false; ///< the counter had no step to come
        bool covered = false;
        unsigned tpm = 0;
    };
    struct ImageCopy {
        Bytes content;
        bool in_flight = false; ///< see Inst::copied
    };
    enum class Outcome { yes, no, unknown };

    void say(std::string line);
    /// An invariant is: the loop throws it, or who steps it.
    void broken(std::string what);
    void check() const;
    void note(std::uint64_t what);

    // the loop (world.cpp)
    std::vector<Process*> processes();
    [[nodiscard]] bool faults_armed() const;
    bool turn_any(Random& order);
    void turns(std::uint32_t count, std::uint64_t seed);
    void idle();
    bool until(const std::function<bool()>& done, std::chrono::seconds limit);
    void alone(Process& process, const std::function<bool()>& done);
    void advance(Clock::duration by);
    void see_power() const;
    void disturb() {
        ++disturbances_;
        disturbed_at_ = now_;
    }
    /// Long enough ago for every instance to have come back to the manager, and saved what it had to save again.
    [[nodiscard]] bool settled() const { return now_ - disturbed_at_ >= std::chrono::seconds(10); }
    void reap();
    template <typename T>
    void run_in(Process& process, unsigned& operations, Task<Result<T>> task,
                std::function<void(Result<T>, bool dead)> ended);

    // what is done (steps.cpp, operations.cpp)
    void act(const Step& s);
    void serve(const std::string& recovery_file);
    void arm(const Step& s);
    void link_step(Inst& i, Kind kind);
    Task<Result<void>> look_at_fill();
    void start_manager(const std::string& recovery_file, const std::function<void()>& and_then = {});
    [[nodiscard]] manager::Vault::Options vault_options() const;
    manager::Vault::Parts vault_parts(Manager& m) const;
    void opened(Manager& m);
    bool end_manager(bool killed);
    [[nodiscard]] static bool level(const Manager& m);
    Task<Result<void>> teardown(Manager& m);
    void power_cut(test::FaultDisk::Loss loss, std::size_t parameter);
    Task<Result<std::unique_ptr<proto::Channel>>> connect(Inst& i);
    void start_instance(std::size_t vtpm, bool twin, bool create);
    void booted(Inst& i, Result<void> outcome, bool calm);
    void end_instance(Inst& i, bool killed);
    Inst* find(std::size_t vtpm, bool twin);
    void guest(Inst& i, bool add);
    void forsake(std::size_t n);
    void put_newest_image(std::size_t n);
    bool start_and_count(std::size_t n);
    void pull(const std::string& path, const Inst* by);
    void put_rescued(const std::string& path);
    void grow(std::uint64_t size);
    void copy_store(bool by_manager);
    void old_store(const Step& s);
    void manage(const Step& s);
    void group_step(const Step& s);
    void old_image(std::size_t vtpm);
    void new_tpm();
    void hand_over(Inst& i);
    void know_recovery_key(const std::string& path);
    void recovery_add();
    void recovery_remove(std::size_t which);
    void recovery_look();
    /// Of a key that surely opens `model`'s store; empty: there is none.
    [[nodiscard]] static std::string recovery_file_of(const Model& model, std::size_t which);
    [[nodiscard]] Presence listed(const RecoveryModel& key) const;
    Task<Result<void>> fill(Manager& m, unsigned what, unsigned count);
    void watch();
    void check_restart();
    [[nodiscard]] Presence observed(const Uuid& uuid) const;
    [[nodiscard]] bool group_opens(std::uint32_t group) const;
    [[nodiscard]] std::optional<manager::GroupId> group_id(std::uint32_t group) const;
    [[nodiscard]] bool healthy() const {
        return manager_ && manager_->serving && !manager_->trouble && !faults_armed();
    }
    static Outcome outcome_of(bool success, Errc code, bool dead);
    [[nodiscard]] manager::ApprovalList list_of(std::uint32_t group, std::uint64_t sequence) const;

    const Config config_;
    const std::string folder_;
    const bool loud_;
    std::vector<std::string> lines_;
    std::optional<std::string> broken_;
    std::uint64_t trace_ = 14695981039346656037ULL;

    Files files_;
    fakes::FakeTpm tpm_;
    unsigned tpm_number_ = 1;
    std::uint64_t counter_steps_ = 0;
    std::int64_t tpm_fault_in_ = -1;
    unsigned tpm_fault_left_ = 0;
    bool tpm_fault_after_ = false;
    std::optional<std::pair<test::FaultDisk::Loss, std::size_t>> power_plan_;

    Clock::time_point now_, disturbed_at_;
    std::unique_ptr<Manager> manager_;
    std::list<std::unique_ptr<Inst>> instances_;
    Model model_;
    std::vector<Uuid> uuids_, group_uuids_;
    std::uint64_t next_tpm_ = 1, next_fill_ = 1, next_recovery_ = 1;
    std::uint64_t disturbances_ = 0;
    std::optional<StoreCopy> copy_;
    std::map<std::size_t, ImageCopy> images_;
    std::set<std::string> pulled_; ///< paths of files that were taken from under their process
    bool store_made_ = false, platform_b_ = false, freshness_began_ = false;
    bool old_copy_opens_ = false;
    bool left_level_ = false; ///< no step of the counter was to come when the last manager ended
};

template <typename T>
void World::run_in(Process& process, unsigned& operations, Task<Result<T>> task,
                   std::function<void(Result<T>, bool dead)> ended) {
    ++operations;
    asio::co_spawn(process.io, std::move(task),
                   [this, &process, &operations, ended = std::move(ended)](std::exception_ptr e, Result<T> r) {
                       --operations;
                       if (e && !process.dead) {
                           try {
                               std::rethrow_exception(e);
                           } catch (const std::exception& why) {
                               broken(fmt::format("{}: an exception: {}", process.name, why.what()));
                           }
                       }
                       if (e) {
                           r = make_error(Errc::canceled, "an exception");
                       }
                       note(r.has_value() ? 1 : 2 + static_cast<std::uint64_t>(r.error().code));
                       ended(std::move(r), process.dead);
                   });
}

} // namespace vtpmd::sim
