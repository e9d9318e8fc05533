#include "report.hpp"

#include <boost/json.hpp>
#include <cstdio>
#include <ctime>
#include <fmt/format.h>
#include <fstream>
#include <memory>
#include <openssl/crypto.h>
#include <sys/utsname.h>
#include <thread>

extern "C" {
#include <libtpms/tpm_library.h>
}

namespace bench {

namespace {

std::string cpu_model() {
    std::ifstream in("/proc/cpuinfo");
    for (std::string line; std::getline(in, line);) {
        if (line.starts_with("model name") || line.starts_with("Model")) {
            return line.substr(line.find(':') + 2);
        }
    }
    return "unknown";
}

/// "ext4 (/dev/sda rw,relatime)": type, device and options of the last mount point that is a prefix of the path.
std::string file_system(const std::filesystem::path& dir) {
    std::ifstream in("/proc/self/mounts");
    const std::string path = std::filesystem::absolute(dir).string();
    std::string best;
    std::string type = "unknown";
    for (std::string device, mount, fs, rest; in >> device >> mount >> fs && std::getline(in, rest);) {
        const bool inside = path == mount || path.starts_with(mount == "/" ? mount : mount + "/");
        if (inside && mount.size() >= best.size()) {
            best = mount;
            type = fs + " (" + device + rest.substr(0, rest.find(" 0 ")) + ")";
        }
    }
    return type;
}

std::string number(double v) {
    return v >= 1000 ? fmt::format("{:.0f}", v) : v >= 10 ? fmt::format("{:.1f}", v) : fmt::format("{:.2f}", v);
}

std::optional<double> ratio(const Row& r) {
    return r.theirs && *r.theirs > 0 ? std::optional(r.ours / *r.theirs) : std::nullopt;
}

std::string wanted(const Row& r) {
    if (r.limit) {
        return fmt::format("<= {} {} (vtpmd)", number(*r.limit), r.ours <= *r.limit ? "yes" : "NO");
    }
    const auto value = ratio(r);
    if (!value || (!r.at_most && !r.at_least)) {
        return "";
    }
    const bool met = r.at_most ? *value <= *r.at_most : *value >= *r.at_least;
    return fmt::format("{} {} {}", r.at_most ? "<=" : ">=", number(r.at_most ? *r.at_most : *r.at_least),
                       met ? "yes" : "NO");
}

} // namespace

std::string first_line_of(const std::string& command) {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen((command + " 2>&1").c_str(), "r"), pclose);
    char line[256] = "";
    if (!pipe || std::fgets(line, sizeof line, pipe.get()) == nullptr) {
        return "unknown";
    }
    std::string out(line);
    out.erase(out.find_last_not_of("\n") + 1);
    return out;
}

void Report::describe_machine(const std::filesystem::path& dir, const std::string& swtpm_version) {
    utsname u{};
    uname(&u);
    const std::time_t now = std::time(nullptr);
    char date[32] = "";
    std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
    const std::uint32_t v = TPMLIB_GetVersion();
    machine_ = {{"date", date},
                {"cpu", fmt::format("{} ({} logical)", cpu_model(), std::thread::hardware_concurrency())},
                {"kernel", fmt::format("{} {}", u.sysname, u.release)},
                {"file system", file_system(dir)},
                {"vtpmd", VTPMD_VERSION},
                {"swtpm", swtpm_version},
                {"libtpms", fmt::format("{}.{}.{}", v >> 16, v >> 8 & 0xff, v & 0xff)},
                {"OpenSSL", OpenSSL_version(OPENSSL_VERSION_STRING)}};
}

std::string Report::table() const {
    std::string out;
    for (const auto& [key, value] : machine_) {
        out += fmt::format("  {:<12} {}\n", key, value);
    }
    out += fmt::format("\n{:<62} {:>7} {:>10} {:>10} {:>7}  {}\n", "", "unit", "vtpmd", "swtpm", "ratio", "wanted");
    for (const Row& r : rows_) {
        const auto q = ratio(r);
        out += fmt::format("{:<62} {:>7} {:>10} {:>10} {:>7}  {}\n", r.name, r.unit, number(r.ours),
                           r.theirs ? number(*r.theirs) : "-", q ? number(*q) : "-", wanted(r));
    }
    for (const std::string& n : notes_) {
        out += "  " + n + "\n";
    }
    return out;
}

std::string Report::json() const {
    namespace js = boost::json;
    js::object machine;
    for (const auto& [key, value] : machine_) {
        machine[key] = value;
    }
    js::array results;
    for (const Row& r : rows_) {
        js::object o{{"name", r.name}, {"unit", r.unit}, {"vtpmd", r.ours}};
        if (r.theirs) {
            o["swtpm"] = *r.theirs;
        }
        if (const auto q = ratio(r)) {
            o["ratio"] = *q;
        }
        if (r.at_most) {
            o["wanted_at_most"] = *r.at_most;
        }
        if (r.at_least) {
            o["wanted_at_least"] = *r.at_least;
        }
        results.push_back(std::move(o));
    }
    return js::serialize(js::object{{"machine", std::move(machine)},
                                    {"results", std::move(results)},
                                    {"notes", js::array(notes_.begin(), notes_.end())}});
}

} // namespace bench
