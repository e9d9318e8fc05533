#include "manager/run.hpp"

#include "manager/ca/certifier.hpp"
#include "manager/compat/vtpm_managerd/socket.hpp"
#include "manager/compat/vtpmmgr/administration.hpp"
#include "manager/groups/deep_quotes.hpp"
#include "manager/groups/groups.hpp"
#include "manager/instances/supervisor.hpp"
#include "manager/links/key_service.hpp"
#include "manager/links/listener.hpp"
#include "manager/management/control_service.hpp"
#include "manager/vault/vault.hpp"
#include "manager/xen/guests.hpp"
#include "manager/xen/rings.hpp"
#include "util/deadline.hpp"
#include "util/service.hpp"
#include "util/unix_socket.hpp"
#include "util/when_free.hpp"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <filesystem>
#include <sys/stat.h>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

constexpr auto links_patience = std::chrono::seconds(10);
constexpr auto children_patience = std::chrono::seconds(20);

std::uint64_t unix_time() {
    return static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count());
}

Vault::Options vault_options(const ManagerOptions& o) {
    return {.size = o.store_size,
            .recovery_file = o.recovery_file,
            .seal_pcrs = o.seal_pcrs,
            .allow_zero_pcrs = o.allow_zero_pcrs,
            .freshness = o.freshness,
            .accept_counter = o.accept_counter,
            .accept_no_counter = o.accept_no_counter};
}

/// Everything that lives while the manager serves. Built in this order, taken down in the other.
class Manager {
  public:
    Manager(ManagerOptions options, RuntimeDeps deps, hwtpm::RootOfTrust& root, std::unique_ptr<Vault> vault)
        : options_(std::move(options))
        , deps_(deps)
        , vault_(std::move(vault))
        , spawner_(make_spawner(deps.executor))
        , processes_(
              options_.spawn.run_dir,
              [this](const Uuid& uuid) {
                  return spawner_->image_in_use(fmt::format("{}/{}.img", options_.spawn.state_dir, uuid));
              },
              deps.clock, deps.log)
        , wanted_(deps.executor, options_.spawn.state_dir)
        , tasks_(deps.executor, deps.log)
        , links_(deps.executor, deps.log)
        , groups_({.executor = deps.executor, .vault = *vault_, .root = root, .log = deps.log})
        , deep_quotes_({.vault = *vault_, .root = root, .groups = groups_})
        , guest_totals_(deps.clock)
        , certifier_({.executor = deps.executor, .vault = *vault_, .log = deps.log, .unix_time = unix_time})
        , service_(
              {.auto_create = options_.auto_create,
               .changes_a_day =
                   options_.freshness.mode == FreshnessPolicy::Mode::strict ? options_.freshness.changes_a_day : 0,
               .admin = options_.admin},
              {.executor = deps.executor,
               .vault = *vault_,
               .root = root,
               .clock = deps.clock,
               .log = deps.log,
               .admit = [this](const Uuid& vtpm, const proto::BootHash& label) { return groups_.admit(vtpm, label); },
               .quote = [this](const Uuid& vtpm,
                               proto::QuoteRequest request) { return deep_quotes_.make(vtpm, std::move(request)); },
               .old_quote =
                   [this](const Uuid& vtpm, const proto::BootHash& label, proto::OldQuoteRequest request) {
                       return deep_quotes_.make_old(vtpm, label, std::move(request));
                   },
               .report = [this](const Uuid& vtpm, proto::Report report) { return take_report(vtpm, report); },
               .opened =
                   [this](const Uuid& vtpm, const ProcessHandle& process) {
                       processes_.opened(vtpm, process);
                       supervisor_.met(vtpm, process);
                   },
               .unix_time = unix_time,
               .gone =
                   [this](const Uuid& vtpm) {
                       guest_totals_.forget(vtpm);
                       supervisor_.forget(vtpm);
                   },
               .certify = [this](const Uuid& vtpm,
                                 proto::CertifyRequest claim) { return certifier_.certify(vtpm, std::move(claim)); },
               .administer = [this](Bytes frame) { return administration_.run(std::move(frame)); }})
        , supervisor_(
              options_.spawn, options_.listen_path,
              {.executor = deps.executor,
               .spawner = *spawner_,
               .clock = deps.clock,
               .log = deps.log,
               .serve_link = [this](UniqueFd fd, const Uuid& uuid,
                                    pid_t pid) { serve_spawned_link(listener_parts(), std::move(fd), uuid, pid); },
               .processes = &processes_,
               .unix_time = unix_time})
        , control_({.vault = *vault_,
                    .root = root,
                    .service = service_,
                    .supervisor = supervisor_,
                    .groups = groups_,
                    .quotes = deep_quotes_,
                    .guests = guest_totals_,
                    .certifier = certifier_,
                    .processes = processes_,
                    .wanted = wanted_,
                    .clock = deps.clock,
                    .store_path = options_.store_path})
        , administration_(
              {.admin = options_.admin, .new_vtpms = options_.spawn.tpm_version.value_or(TpmVersion::tpm12)},
              {.vault = *vault_,
               .groups = groups_,
               .service = service_,
               .root = root,
               .remove_vtpm = [this](Uuid uuid) { return control_.remove(uuid); }})
        , legacy_(
              {.run_dir = options_.spawn.run_dir, .new_vtpms = options_.spawn.tpm_version.value_or(TpmVersion::tpm12)},
              {.executor = deps.executor,
               .vault = *vault_,
               .service = service_,
               .supervisor = supervisor_,
               .stop = [this](Uuid uuid) { return control_.stop(uuid, false); },
               .remove = [this](Uuid uuid) { return control_.remove(uuid); },
               .clock = deps.clock,
               .log = deps.log}) {}

    Task<Result<void>> run() {
        co_await groups_.open_all();
        if (auto xen = open_xen(); !xen) {
            (void)co_await end();
            co_return xen;
        }
        auto opened = co_await when_free(deps_.clock, dying_process_patience, [this] { return open_listener(); });
        if (opened) {
            opened = co_await when_free(deps_.clock, dying_process_patience, [this] { return open_management(); });
        }
        if (!opened) {
            (void)co_await end();
            co_return opened;
        }
        if (opened = co_await when_free(deps_.clock, dying_process_patience, [this] { return open_legacy(); });
            !opened) {
            (void)co_await end();
            co_return opened;
        }
        co_await open_link();
        if (management_) {
            tasks_.spawn("management", management_->run());
        }
        if (legacy_socket_) {
            tasks_.spawn("a toolstack's socket", legacy_socket_->run());
        }
        vault_->freshness().on_fatal([this](const Error& e) { fail(e); });
        vault_->when_stopped([this](const Error& e) { fail(e); });
        tasks_.on_failure([this](const std::string& name) {
            fail(make_error(Errc::unavailable, "'{}' ended by an exception, see above", name));
        });
        tasks_.spawn("freshness", vault_->freshness().run());
        tasks_.spawn("listener", listener_->run());
        if (link_listener_) {
            tasks_.spawn("spawned instances", link_listener_->run());
        }
        if (xen_guests_) {
            tasks_.spawn("Xen guests", xen_guests_->run());
        }
        if (xen_rings_) {
            tasks_.spawn("vTPM domains", xen_rings_->run());
        }
        if (options_.spawn.enabled || options_.management.make) {
            tasks_.spawn("images", supervisor_.look_after_images());
        }
        start_instances();
        deps_.log.info("{}: {} vTPMs", options_.store_path, vault_->registry().vtpm_count());
        deps_.log.info("Waiting for commands from vTPMs");
        notify_ready(fmt::format("{} vTPMs", vault_->registry().vtpm_count()));
        co_await deps_.stop.wait();
        notify_stopping();
        co_return co_await end();
    }

  private:
    /// Those that run already first, as they were started; then those that are to run.
    void start_instances() {
        const Registry& registry = vault_->registry();
        const auto left = processes_.take_up();
        for (const auto& [uuid, vtpm] : registry.vtpms()) {
            processes_.look(uuid);
        }
        for (const Processes::Found& found : left) {
            const bool device = found.spawned && found.spawned->guest.starts_with("xen:"); // comes with its device
            if (found.spawned && !device && registry.find(found.uuid) != nullptr && processes_.in_use(found.uuid)) {
                supervisor_.keep(found.uuid, {.guest = found.spawned->guest, .startup = found.spawned->startup});
            }
        }
        if (!wanted_.read()) {
            deps_.log.error("{}; what was to be started with the manager is not", wanted_.read().error().message);
        }
        std::vector<Uuid> wanted(wanted_.all().begin(), wanted_.all().end());
        if (options_.spawn.enabled && (!options_.xen.guests || !options_.spawn.only.empty())) {
            for (const Uuid& uuid : supervisor_.choose(registry)) {
                if (!registry.number_of(uuid)) { // a toolstack opens those
                    wanted.push_back(uuid);
                }
            }
        }
        for (const Uuid& uuid : wanted) {
            const Registry::Vtpm* vtpm = registry.find(uuid);
            const bool named = std::ranges::count(options_.spawn.only, uuid) != 0;
            if ((vtpm == nullptr && !named) || supervisor_.in_charge(uuid)) {
                continue;
            }
            const bool fresh = vtpm != nullptr && !vtpm->has_key() && wanted_.has(uuid);
            supervisor_.keep(uuid, fresh ? std::optional(vtpm->version) : std::nullopt);
        }
    }
    Result<void> take_report(const Uuid& vtpm, const proto::Report& report) {
        const auto* known = vault_->registry().find(vtpm);
        return known != nullptr ? guest_totals_.take(vtpm, known->version, report) : Result<void>{};
    }
    Listener::Parts listener_parts() {
        return {
            .executor = deps_.executor, .service = service_, .links = links_, .clock = deps_.clock, .log = deps_.log};
    }

    Task<Result<void>> open_listener() {
        UniqueFd fd = std::move(options_.listen_fd);
        if (!fd) {
            auto made = listen_unix(options_.listen_path);
            if (!made) {
                co_return made.error();
            }
            fd = std::move(*made);
            own_socket_ = true;
            warn_of_folder(deps_.log, options_.listen_path);
        }
        auto listener = Listener::make(
            std::move(fd),
            {.allowed = allowed_peers(),
             .spawned_for = [this](const ProcessHandle& process) { return processes_.spawned_for(process); }},
            listener_parts());
        if (!listener) {
            co_return listener.error();
        }
        listener_ = std::move(*listener);
        co_return Result<void>{};
    }

    /// Where instances that a manager spawned come back to: they reach nothing else (sandbox.hpp). Without it they come to the
    /// other one, which those that have a user of their own cannot.
    Task<> open_link() {
        const std::string& run_dir = options_.spawn.run_dir;
        std::error_code ec;
        if (options_.spawn.sandbox == SandboxMode::off || !std::filesystem::is_directory(run_dir, ec)) {
            co_return;
        }
        const std::string folder = std::filesystem::absolute(run_dir, ec).string() + "/instances";
        link_path_ = folder + "/link.sock";
        auto opened = co_await when_free(deps_.clock, dying_process_patience, [&] { return try_link(folder); });
        if (!opened) {
            deps_.log.warning("{}; spawned instances run as the manager's user", opened.error().message);
            link_path_.clear();
            co_return;
        }
        supervisor_.come_back_to(link_path_);
        if (options_.spawn.users) {
            open_way_to_images();
        }
    }

    /// An instance looks whether its image is still at its place (file_watch.hpp), as its own user: it passes through the folder,
    /// and reads nothing there.
    void open_way_to_images() {
        const std::string& path = options_.spawn.state_dir;
        const UniqueFd folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        struct stat st {};
        if (folder && ::fstat(folder.get(), &st) == 0 && st.st_uid == ::geteuid() && (st.st_mode & 0001U) == 0) {
            (void)::fchmod(folder.get(), (st.st_mode & 07777U) | 0001U);
            deps_.log.info("{}: others may pass through it now, so that instances can look after their images", path);
        }
    }

    Task<Result<void>> try_link(const std::string& folder) {
        (void)::mkdir(folder.c_str(), 0700);
        const UniqueFd made(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
        struct stat st {};
        if (!made || ::fstat(made.get(), &st) != 0) {
            co_return errno_error(errno, folder);
        }
        // Passed through, by processes that have it as their root; its files are root's.
        if (st.st_uid != ::geteuid() || (st.st_mode & 0022U) != 0 || ::fchmod(made.get(), 0711) != 0) {
            co_return make_error(Errc::permission, "{}: belongs to another user, or others may write there", folder);
        }
        auto fd = listen_unix(link_path_, SocketReach::everyone);
        if (!fd) {
            co_return fd.error();
        }
        auto listener = Listener::make(
            std::move(*fd),
            {.allowed = allowed_peers(),
             .only_spawned = true,
             .spawned_for = [this](const ProcessHandle& process) { return processes_.spawned_for(process); }},
            listener_parts());
        if (!listener) {
            co_return listener.error();
        }
        link_listener_ = std::move(*listener);
        co_return Result<void>{};
    }

    Task<Result<void>> open_management() {
        ManagementOptions& o = options_.management;
        if (!o.make || (!o.fd && o.path.empty())) {
            co_return Result<void>{};
        }
        UniqueFd fd = std::move(o.fd);
        if (!fd) {
            // Who may do what is decided by the peer's credentials; with two groups a file's mode cannot tell.
            auto made = listen_unix(o.path, o.full_group || o.read_group ? SocketReach::everyone : SocketReach::owner);
            if (!made) {
                co_return in_context(made.error(), "--api");
            }
            fd = std::move(*made);
            own_api_socket_ = true;
            warn_of_folder(deps_.log, o.path);
        }
        ManagementParts parts{.executor = deps_.executor,
                              .listening = std::move(fd),
                              .access = {.own_uid = ::geteuid(), .full = o.full_group, .read_only = o.read_group},
                              .control = control_,
                              .clock = deps_.clock,
                              .log = deps_.log};
        auto management = o.make(std::move(parts));
        if (!management) {
            co_return management.error();
        }
        management_ = std::move(*management);
        co_return Result<void>{};
    }

    Task<Result<void>> open_legacy() {
        if (options_.legacy_path.empty()) {
            co_return Result<void>{};
        }
        auto made = listen_unix(options_.legacy_path, SocketReach::owner);
        if (!made) {
            co_return in_context(made.error(), "--legacy");
        }
        own_legacy_socket_ = true;
        warn_of_folder(deps_.log, options_.legacy_path);
        legacy_socket_.emplace(
            std::move(*made), LegacySocket::Options{.own_uid = ::geteuid()},
            LegacySocket::Parts{
                .executor = deps_.executor, .service = legacy_, .clock = deps_.clock, .log = deps_.log});
        co_return Result<void>{};
    }

    Result<void> open_xen() {
        if (options_.xen == XenOptions{}) {
            return {};
        }
        auto fabric = xen::open_fabric(deps_.executor, deps_.clock, deps_.log);
        if (!fabric) {
            return in_context(std::move(fabric).error(), "--xen");
        }
        fabric_ = std::move(*fabric);
        fabric_->start();
        if (options_.xen.guests) {
            xen_guests_ =
                std::make_unique<XenGuests>(options_.spawn.enabled, XenGuests::Parts{.fabric = *fabric_,
                                                                                     .supervisor = supervisor_,
                                                                                     .clock = deps_.clock,
                                                                                     .log = deps_.log,
                                                                                     .admin = options_.admin});
        }
        if (options_.xen.vtpms || options_.admin) {
            std::optional<Uuid> only;
            if (options_.xen.guests) {
                only = options_.admin;
            }
            xen_rings_ = std::make_unique<XenRings>(XenRings::Parts{.fabric = *fabric_,
                                                                    .service = service_,
                                                                    .links = links_,
                                                                    .clock = deps_.clock,
                                                                    .log = deps_.log,
                                                                    .only = only});
        }
        return {};
    }

    /// What makes going on impossible: stop, and say so at the end.
    void fail(Error e) {
        deps_.log.error("{}", e.message);
        notify_status(fmt::format("ends: {}", e.message));
        if (!failure_) {
            failure_ = std::move(e);
        }
        deps_.stop.request();
    }

    Task<Result<void>> end() {
        deps_.log.info("stopping");
        tasks_.cancel(); // no new vTPMs
        co_await tasks_.join();
        listener_.reset();
        if (link_listener_) {
            link_listener_.reset();
            (void)::unlink(link_path_.c_str());
        }
        if (own_socket_) {
            (void)::unlink(options_.listen_path.c_str());
        }
        service_.stop_asking(); // requests of management wait for answers
        if (legacy_socket_) {
            co_await legacy_socket_->stop();
            legacy_socket_.reset();
        }
        if (own_legacy_socket_) {
            (void)::unlink(options_.legacy_path.c_str());
        }
        if (management_) {
            co_await management_->stop();
            management_.reset();
        }
        if (own_api_socket_) {
            (void)::unlink(options_.management.path.c_str());
        }
        if (xen_guests_) {
            co_await xen_guests_->stop();
            xen_guests_.reset();
        }
        // Guests go on: their instances wait for the next manager. Those that are to end save what they are at first.
        if (options_.spawn.stop_instances) {
            co_await supervisor_.stop(children_patience);
        } else {
            co_await supervisor_.leave();
        }
        if (xen_rings_) {
            co_await xen_rings_->stop();
        }
        co_await end_links();
        xen_rings_.reset();
        if (fabric_) {
            co_await fabric_->stop();
            fabric_.reset();
        }
        auto closed = co_await vault_->close();
        if (failure_) {
            co_return *failure_;
        }
        if (!closed) {
            co_return closed;
        }
        deps_.log.info("stopped");
        co_return Result<void>{};
    }

    Task<> end_links() {
        service_.stop();
        auto cancel_later = [](TaskGroup& links, Clock& clock, const Log& log) -> Task<> {
            if (auto stopped = co_await clock.sleep_for(links_patience)) {
                co_return;
            }
            for (const std::string& name : links.names()) {
                log.warning("{}: does not end; cut off", name);
            }
            links.cancel();
        };
        TaskGroup watch(deps_.executor, deps_.log);
        watch.spawn("links' patience", cancel_later(links_, deps_.clock, deps_.log));
        co_await links_.join();
        watch.cancel();
        co_await watch.join();
    }

    ManagerOptions options_;
    RuntimeDeps deps_;
    std::unique_ptr<Vault> vault_;
    std::unique_ptr<Spawner> spawner_;
    Processes processes_;
    Autostart wanted_;
    TaskGroup tasks_; ///< the listener, and the lazy freshness steps
    TaskGroup links_; ///< one task a connection
    Groups groups_;
    DeepQuotes deep_quotes_;
    GuestTotals guest_totals_;
    Certifier certifier_;
    KeyService service_;
    Supervisor supervisor_;
    ControlService control_;
    Administration administration_;
    LegacyService legacy_;
    std::optional<LegacySocket> legacy_socket_; ///< with --legacy
    std::unique_ptr<xen::Fabric> fabric_;       ///< with --xen
    std::unique_ptr<XenGuests> xen_guests_;
    std::unique_ptr<XenRings> xen_rings_;
    std::unique_ptr<Listener> listener_;
    std::unique_ptr<Listener> link_listener_; ///< of spawned instances
    std::string link_path_;
    std::unique_ptr<Management> management_;
    bool own_socket_ = false;
    bool own_api_socket_ = false;
    bool own_legacy_socket_ = false;
    std::optional<Error> failure_;
};

/// --create makes a store where there is none, and leaves one that is there as it is.
Task<Result<std::unique_ptr<Vault>>> open_or_create(const ManagerOptions& options, const Vault::Parts& parts) {
    if (options.create) {
        Vault::Options create_options = vault_options(options);
        Vault::Parts create_parts = parts;
        auto created = co_await Vault::create(std::move(create_options), std::move(create_parts));
        if (created || created.error().code != Errc::exists || !options.recovery_file.empty()) {
            co_return created;
        }
        parts.log.info("{}: there is a store already; --create has nothing to do", options.store_path);
    }
    Vault::Options open_options = vault_options(options);
    Vault::Parts open_parts = parts;
    co_return co_await Vault::open(std::move(open_options), std::move(open_parts));
}

std::string number_or(const std::optional<std::uint64_t>& value, std::string_view otherwise) {
    return value ? std::to_string(*value) : std::string(otherwise);
}

/// --check: what is found goes to standard output; the outcome is a start's.
Result<void> print_look(const ManagerOptions& options, const Vault::Look& seen) {
    fmt::print("store            {} ({}{})\n", options.store_path, seen.store, seen.backup ? ", a backup" : "");
    fmt::print("opened by        {}\n", seen.opened_by);
    if (!seen.recovery.empty()) {
        fmt::print("recovery file    {}: {}\n", options.recovery_file, seen.recovery);
    }
    for (const RecoveryKey& k : seen.recovery_keys) {
        fmt::print("recovery key     {}{}{}\n", shown_id(k), k.label.empty() ? "" : " ", k.label);
    }
    fmt::print("vTPMs            {}, in {} groups; {} tombstones\n", seen.vtpms, seen.groups, seen.tombstones);
    fmt::print("written at       {}\n", number_or(seen.written_at, "no counter"));
    fmt::print("counter is at    {}\n", number_or(seen.counter, "not compared"));
    fmt::print("a start          {}\n", seen.opens ? "serves" : "is refused");
    return seen.opens;
}

Task<Result<void>> open_and_serve(ManagerOptions options, RuntimeDeps deps, hwtpm::RootOfTrust& root) {
    auto io = make_block_io(deps.executor);
    if (!io) {
        co_return io.error();
    }
    auto place = make_file_place(**io, options.store_path, deps.log);
    Vault::Parts parts{.executor = deps.executor,
                       .place = *place,
                       .root = root,
                       .clock = deps.clock,
                       .log = deps.log,
                       .unix_time = unix_time};
    if (options.check) {
        Vault::Options look_options = vault_options(options);
        auto seen = co_await Vault::look(std::move(look_options), std::move(parts));
        co_return seen ? print_look(options, *seen) : Result<void>(seen.error());
    }
    auto opened =
        co_await when_free(deps.clock, dying_process_patience, [&] { return open_or_create(options, parts); });
    if (!opened) {
        co_return opened.error();
    }
    Manager manager(std::move(options), deps, root, std::move(*opened));
    co_return co_await manager.run();
}

} // namespace

Task<Result<void>> run_manager(ManagerOptions options, RuntimeDeps deps) {
    const bool missing = ::access(options.store_path.c_str(), F_OK) != 0 && errno == ENOENT;
    if (!missing && ::access(options.store_path.c_str(), F_OK) != 0) {
        co_return errno_error(errno, options.store_path);
    }
    if (missing && !options.create) {
        co_return make_error(
            Errc::not_found,
            "{}: there is no store; name the one that this host has, or make the first with --create (a new store "
            "opens no vTPM of an old one)",
            options.store_path);
    }
    if (options.spawn.enabled && !options.check) {
        const auto made = make_state_dir(options.spawn.state_dir);
        if (!made) {
            co_return made.error();
        }
        if (*made) {
            deps.log.info("{}: made, for the images of spawned instances", options.spawn.state_dir);
        }
    }
    // A software TPM is made together with a store, never beside one that is there: that one is sealed to another.
    std::error_code unknown; // what it is, is told when it is opened
    const bool new_place = missing || !std::filesystem::is_regular_file(options.store_path, unknown);
    auto root = hwtpm::open_root(options.tpm, deps.executor, deps.log, options.create && new_place);
    if (!root) {
        co_return root.error();
    }
    deps.log.info("root of trust: {}", (*root)->description());
    auto outcome = co_await open_and_serve(std::move(options), deps, **root);
    co_await (*root)->close();
    co_return outcome;
}

} // namespace vtpmd::manager
