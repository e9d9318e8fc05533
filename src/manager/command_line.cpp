#include "manager/command_line.hpp"

#include "hwtpm/drivers/driver_spec.hpp"
#include "util/service.hpp"
#include "util/text.hpp"
#include "util/unix_socket.hpp"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <unistd.h>

namespace vtpmd::manager {

namespace {

constexpr OptionSpec specs[] = {
    {"store", "PATH", "the manager's image, a file or block device (default /var/lib/vtpmd/manager.img)"},
    {"create", "", "make the store if there is none; an existing one is never replaced"},
    {"store-size", "BYTES", "size of a new store (default 16777216: 20,000 vTPMs)"},
    {"recovery-file", "PATH",
     "with --create: write a recovery key there, to be kept off this host; else: open the store with it, where the TPM "
     "does not, and seal it anew (TPM replaced, PCRs changed)"},
    {"tpm", "DRIVER",
     "tis[:0xADDRESS], device[:/dev/tpm0], swtpm:unix:PATH, swtpm:tcp:HOST:PORT, xen[:HANDLE] (another domain's vTPM), "
     "embedded:DIR (software, for trying), auto (default)"},
    {"tpm-locality", "N", "locality for the hardware TPM, 0-4 (default 0, the kernel's only one)", false,
     "tpmlocality"},
    {"owner-auth", "AUTH", "well-known (default), hash:HEX or text:STR"},
    {"srk-auth", "AUTH", "the storage root key's, the same forms"},
    {"srk-handle", "HANDLE", "persistent handle of the TPM 2.0 storage key (default 0x81000001)"},
    {"seal-pcrs", "BANK:LIST", "what the store is sealed to (default sha256:0,2,4,7), or none"},
    {"allow-zero-pcrs", "", "seal even to PCRs that nothing was measured into"},
    {"freshness", "MODE",
     "window[:SECONDS] (default 900), strict[:CHANGES of a vTPM a day] (default 10000) or off: how soon a rolled-back store "
     "is noticed"},
    {"accept-counter", "N|none",
     "once: take an old copy of the store, N is the TPM's counter as the refusal named it; none: there is no counter "
     "that "
     "could be compared (TPM replaced, store made with --freshness=off), and this is the newest copy"},
    {"check", "",
     "look whether the store would open, at this TPM and counter or with --recovery-file, and end: nothing is changed, "
     "the "
     "counter is not stepped"},
    {"listen", "unix:PATH", "where vTPMs find the manager (default unix:/run/vtpmd/manager.sock)"},
    {"api", "unix:PATH",
     "where the manager is managed (vtpmctl); default unix:/run/vtpmd/api.sock, or none where --listen is given; none: "
     "nowhere"},
    {"api-group", "GROUP", "its members may manage, besides root"},
    {"api-read-group", "GROUP", "its members may look at everything and change nothing"},
    {"legacy", "unix:PATH",
     "where toolstacks that speak the privileged commands of Xen's manager of 2006 (OPEN, CLOSE, DELETE) find it, root "
     "only "
     "(default: nowhere)"},
    {"auto-create", "", "register a vTPM the first time its UUID asks; else only instances with --create are new"},
    {"spawn", "",
     "start every registered vTPM that has an image in the state directory (--spawn=UUID: only that one); with "
     "--xen=guests one for each device, and beside them only those named",
     true},
    {"stop-instances", "",
     "when the manager is stopped its instances end too; else they go on for their guests, and the next manager takes "
     "them up"},
    {"state-dir", "DIR", "where spawned instances keep their images (default /var/lib/vtpmd)"},
    {"sandbox", "MODE",
     "of spawned instances: auto (default): what this kernel has and the manager may give; on: all of it, or they do "
     "not "
     "start; off"},
    {"instance-users", "FIRST-LAST|none",
     "each spawned instance runs as a user of its own, a number from this range that nothing else has (default where "
     "the "
     "manager is root: 1880000000-1880065535)"},
    {"run-dir", "DIR", "where spawned instances put their guests' sockets (default /run/vtpmd)"},
    {"xen", "guests|vtpms",
     "this domain's vTPM devices in Xen's toolstack are guests' (with --spawn each gets an instance), or vTPM domains' "
     "(each reaches the manager by its ring)",
     true},
    {"admin", "UUID",
     "the administrator's vTPM device: it manages groups and vTPMs by the protocol of Xen's vtpmmgr "
     "(manage-vtpmmgr.pl); "
     "with --xen, also of guests: its ring is the manager's"},
    {"tpm-version", "VERSION",
     "1.2 or 2.0: what a spawned instance makes for a new UUID (default 2.0), and what the administrator adds (default "
     "1.2)"},
    {"locality-policy", "SUBJECT=LIST", "passed on to spawned instances, see --mode=instance --help", true},
    {"config", "FILE", "more options, name = value (default /etc/vtpmd/manager.conf if it exists)"},
    {"log-level", "LEVEL", "error, warning, info (default) or debug", false, "loglevel"},
    {"help", "", "this text"},
};

Error bad_value(std::string_view option, const Error& why) {
    return make_error(Errc::usage, "--{}: {}", option, why.message);
}

Result<std::string> parse_listen(std::string_view option, std::string_view text) {
    constexpr std::string_view scheme = "unix:";
    if (!text.starts_with(scheme) || text.size() == scheme.size()) {
        return make_error(Errc::usage, "--{}={}: expected unix:PATH", option, printable(text));
    }
    return std::string(text.substr(scheme.size()));
}

Result<void> parse_tpm(const CommandLine& line, ManagerOptions& out) {
    out.tpm.driver = line.get_or("tpm", out.tpm.driver);
    if (auto driver = hwtpm::parse_driver(out.tpm.driver); !driver) {
        return bad_value("tpm", driver.error());
    }
    out.tpm.owner_auth = line.get_or("owner-auth", out.tpm.owner_auth);
    out.tpm.srk_auth = line.get_or("srk-auth", out.tpm.srk_auth);
    if (auto text = line.get("tpm-locality")) {
        auto value = parse_number(*text, 4);
        if (!value) {
            return bad_value("tpm-locality", value.error());
        }
        out.tpm.locality = static_cast<unsigned>(*value);
    }
    if (auto text = line.get("srk-handle")) {
        auto value = parse_number(*text, 0x81ffffff);
        if (!value) {
            return bad_value("srk-handle", value.error());
        }
        if (*value < 0x81000000) {
            return make_error(Errc::usage, "--srk-handle={}: persistent handles are 0x81000000 to 0x81ffffff", *text);
        }
        out.tpm.srk_handle = static_cast<std::uint32_t>(*value);
    }
    return {};
}

Result<void> parse_policy(const CommandLine& line, ManagerOptions& out) {
    if (auto text = line.get("seal-pcrs")) {
        auto selection = hwtpm::parse_pcr_selection(*text);
        if (!selection) {
            return bad_value("seal-pcrs", selection.error());
        }
        out.seal_pcrs = std::move(*selection);
    }
    if (auto text = line.get("freshness")) {
        auto policy = parse_freshness(*text);
        if (!policy) {
            return bad_value("freshness", policy.error());
        }
        out.freshness = *policy;
    }
    if (auto text = line.get("accept-counter"); text && *text == "none") {
        out.accept_no_counter = true;
    } else if (text) {
        auto value = parse_number(*text, UINT64_MAX);
        if (!value) {
            return bad_value("accept-counter", value.error());
        }
        out.accept_counter = *value;
    }
    return {};
}

/// No other software gives these numbers out (systemd's list of ranges has them as unused).
constexpr SpawnOptions::Users default_instance_users{1'880'000'000, 1'880'065'535};

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> words) {
    return std::ranges::count(words, text) != 0;
}

Result<void> parse_sandbox(const CommandLine& line, SpawnOptions& out) {
    if (auto text = line.get("sandbox")) {
        auto mode = parse_sandbox_mode(*text);
        if (!mode) {
            return mode.error();
        }
        out.sandbox = *mode;
    }
    if (out.sandbox != SandboxMode::off && ::geteuid() == 0) {
        out.users = default_instance_users;
    }
    if (auto text = line.get("instance-users")) {
        const std::size_t dash = text->find('-');
        constexpr std::uint64_t most = std::numeric_limits<uid_t>::max() - 1;
        const auto first = parse_number(text->substr(0, dash), most);
        const auto last = dash == std::string::npos ? first : parse_number(text->substr(dash + 1), most);
        if (*text == "none") {
            out.users.reset();
        } else if (!first || !last || *first == 0 || *first > *last) {
            return make_error(Errc::usage,
                              "--instance-users={}: a range of numbers such as 1880000000-1880065535, or none",
                              printable(*text));
        } else if (out.sandbox == SandboxMode::off || ::geteuid() != 0) {
            return make_error(Errc::usage,
                              "--instance-users: needs a manager that runs as root, and not --sandbox=off");
        } else {
            out.users = SpawnOptions::Users{static_cast<uid_t>(*first), static_cast<uid_t>(*last)};
        }
    }
    return {};
}

Result<void> parse_spawn(const CommandLine& line, ManagerOptions& out) {
    out.spawn.enabled = line.has("spawn");
    for (const std::string& text : line.all("spawn")) {
        if (is_one_of(text, {"", "all", "true", "yes", "on", "1"})) {
            continue;
        }
        if (is_one_of(text, {"false", "no", "off", "0"})) {
            out.spawn.enabled = false;
            continue;
        }
        auto uuid = parse_uuid(text);
        if (!uuid) {
            return bad_value("spawn", uuid.error());
        }
        out.spawn.only.push_back(*uuid);
    }
    out.spawn.state_dir = line.get_or("state-dir", out.spawn.state_dir);
    out.spawn.run_dir = line.get_or("run-dir", out.spawn.run_dir);
    if (auto sandboxed = parse_sandbox(line, out.spawn); !sandboxed) {
        return sandboxed;
    }
    for (const std::string& text : line.all("xen")) {
        if (text != "guests" && text != "vtpms") {
            return make_error(Errc::usage, "--xen={}: expected guests or vtpms", printable(text));
        }
        (text == "guests" ? out.xen.guests : out.xen.vtpms) = true;
    }
    if (out.xen.guests && out.xen.vtpms) {
        // A guest that were taken for a vTPM domain could ask for its vTPM's key.
        return make_error(Errc::usage, "--xen=guests and --xen=vtpms: the devices of one back-end domain are either "
                                       "guests' or vTPM domains'; run the guests' instances in another domain");
    }
    if (auto text = line.get("admin")) {
        auto uuid = parse_uuid(*text);
        if (!uuid || uuid->is_nil()) {
            return make_error(Errc::usage, "--admin={}: expected the UUID of a vTPM", printable(*text));
        }
        out.admin = *uuid;
    }
    if (auto version = line.get("tpm-version")) {
        if (*version != "1.2" && *version != "2.0") {
            return make_error(Errc::usage, "--tpm-version={}: expected 1.2 or 2.0", printable(*version));
        }
        out.spawn.tpm_version = *version == "1.2" ? TpmVersion::tpm12 : TpmVersion::tpm20;
    }
    for (const std::string& rule : line.all("locality-policy")) {
        out.spawn.extra_arguments.push_back("--locality-policy=" + rule);
    }
    if (auto level = line.get("log-level")) {
        out.spawn.extra_arguments.push_back("--log-level=" + *level);
    }
    return {};
}

Result<void> parse_management(const CommandLine& line, ManagerOptions& out) {
    ManagementOptions& management = out.management;
    if (auto text = line.get("api"); text && *text != "none") {
        auto path = parse_listen("api", *text);
        if (!path) {
            return path.error();
        }
        management.path = std::move(*path);
    } else if (!text && !line.has("listen")) {
        management.path = "/run/vtpmd/api.sock";
    }
    for (auto [option, target] :
         {std::pair{"api-group", &management.full_group}, {"api-read-group", &management.read_group}}) {
        auto name = line.get(option);
        if (!name) {
            continue;
        }
        *target = find_group(*name);
        if (!*target) {
            return make_error(Errc::usage, "--{}={}: there is no such group; groupadd makes one", option,
                              printable(*name));
        }
    }
    return {};
}

Result<void> parse_store(const CommandLine& line, ManagerOptions& out) {
    out.store_path = line.get_or("store", out.store_path);
    out.recovery_file = line.get_or("recovery-file", out.recovery_file);
    if (auto text = line.get("store-size")) {
        auto value = parse_number(*text, std::uint64_t{1} << 40);
        if (!value) {
            return bad_value("store-size", value.error());
        }
        out.store_size = *value;
    }
    if (auto text = line.get("listen")) {
        auto path = parse_listen("listen", *text);
        if (!path) {
            return path.error();
        }
        out.listen_path = std::move(*path);
    }
    if (auto text = line.get("legacy")) {
        auto path = parse_listen("legacy", *text);
        if (!path) {
            return path.error();
        }
        out.legacy_path = std::move(*path);
    }
    return {};
}

} // namespace

std::span<const OptionSpec> option_specs() { return specs; }

Result<ManagerOptions> parse_options(const CommandLine& line) {
    ManagerOptions out;
    for (auto [name, target] : {std::pair{"create", &out.create},
                                {"check", &out.check},
                                {"allow-zero-pcrs", &out.allow_zero_pcrs},
                                {"auto-create", &out.auto_create},
                                {"stop-instances", &out.spawn.stop_instances}}) {
        auto value = line.flag(name);
        if (!value) {
            return value.error();
        }
        *target = *value;
    }
    if (out.check && out.create) {
        return make_error(Errc::usage, "--check changes nothing and --create does: use one of them");
    }
    for (auto* part : {parse_store, parse_tpm, parse_policy, parse_spawn, parse_management}) {
        if (auto done = part(line, out); !done) {
            return done.error();
        }
    }
    for (PassedSocket& socket : take_passed_sockets()) {
        if (socket.name == "api") {
            if (line.get("api") == "none") {
                return make_error(Errc::usage, "a socket named 'api' was passed, but --api=none: disable the socket's "
                                               "unit, or leave the option out");
            }
            out.management.fd = std::move(socket.fd);
            continue;
        }
        if (out.listen_fd) {
            return make_error(Errc::usage, "two sockets were passed for the vTPM link; pass one");
        }
        out.listen_fd = std::move(socket.fd);
        if (auto path = socket_path(out.listen_fd.get()); !path.empty()) {
            out.listen_path = std::move(path); // where instances come back to
        }
    }
    return out;
}

} // namespace vtpmd::manager
