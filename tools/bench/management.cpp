#include "management.hpp"

#include "manager/groups/approval_list.hpp"
#include "must.hpp"
#include "proto/link/messages.hpp"
#include "tpm/public_key.hpp"
#include "util/openssl_ptr.hpp"
#include "util/text.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/json.hpp>
#include <fmt/format.h>
#include <functional>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <random>
#include <stdexcept>
#include <sys/socket.h>
#include <sys/stat.h>
#include <thread>

namespace bench {

using namespace vtpmd;
namespace json = boost::json;
using Steady = std::chrono::steady_clock;

namespace {

constexpr std::chrono::seconds manage_patience{60};
constexpr unsigned save_rounds = 10; ///< at most

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

double microseconds(Steady::duration d) { return std::chrono::duration<double, std::micro>(d).count(); }

Latency percentiles(std::vector<double> samples) {
    if (samples.empty()) {
        fail("nothing was measured");
    }
    std::sort(samples.begin(), samples.end());
    const auto at = [&](double q) {
        return samples[static_cast<std::size_t>(q * static_cast<double>(samples.size() - 1))];
    };
    return {.p50_us = at(0.5), .p99_us = at(0.99)};
}

/// One connection to the management socket, kept alive.
class Api {
  public:
    explicit Api(const std::filesystem::path& socket)
        : fd_(connect_to(socket, manage_patience)) {}

    /// The answer's body. Throws unless it is of success.
    std::string must(std::string_view method, std::string_view target, std::string_view body = "") {
        const std::string request =
            fmt::format("{} {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", method, target, body.size(), body);
        if (::send(fd_.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
            fail("the management socket takes no request");
        }
        std::string answer;
        std::size_t end = std::string::npos;
        while ((end = answer.find("\r\n\r\n")) == std::string::npos) {
            more(answer);
        }
        const std::size_t begin = end + 4;
        const std::size_t size = length(answer.substr(0, begin));
        answer.reserve(begin + size);
        while (answer.size() < begin + size) {
            more(answer);
        }
        if (!answer.starts_with("HTTP/1.1 2")) {
            fail(fmt::format("{} {}: {}", method, target, answer.substr(0, 600)));
        }
        return answer.substr(begin);
    }
    double timed(std::string_view method, std::string_view target, std::string_view body = "") {
        const auto begin = Steady::now();
        (void)must(method, target, body);
        return microseconds(Steady::now() - begin);
    }

  private:
    void more(std::string& answer) {
        const ssize_t n = ::recv(fd_.get(), chunk_.data(), chunk_.size(), 0);
        if (n <= 0) {
            fail("the manager hung up");
        }
        answer.append(chunk_.data(), static_cast<std::size_t>(n));
    }
    static std::size_t length(const std::string& headers) {
        static constexpr std::string_view name = "\r\nContent-Length: ";
        const std::size_t at = headers.find(name);
        if (at == std::string::npos) {
            fail("an answer without a length");
        }
        return std::stoul(headers.substr(at + name.size()));
    }
    UniqueFd fd_;
    std::array<char, 262144> chunk_{};
};

class ApproverKey {
  public:
    ApproverKey()
        : key_(EVP_EC_gen("P-256")) {
        if (!key_) {
            fail("no key for the approver");
        }
    }
    [[nodiscard]] std::string pem() const {
        const Bio out(BIO_new(BIO_s_mem()));
        if (!out || PEM_write_bio_PUBKEY(out.get(), key_.get()) != 1) {
            fail("the approver's key");
        }
        char* data = nullptr;
        const long size = BIO_get_mem_data(out.get(), &data);
        return {data, static_cast<std::size_t>(size)};
    }
    [[nodiscard]] Bytes sign(ByteView message) const {
        const DigestContext context(EVP_MD_CTX_new());
        Bytes out(256);
        std::size_t size = out.size();
        if (!context || EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key_.get()) != 1 ||
            EVP_DigestSign(context.get(), uchar_ptr(MutByteView(out)), &size, uchar_ptr(message), message.size()) !=
                1) {
            fail("the approver cannot sign");
        }
        out.resize(size);
        return out;
    }

  private:
    hwtpm::Pkey key_;
};

/// PCR 16 after extend_16().
hwtpm::PcrValue measured() {
    const Bytes zeros(std::size_t{2} * SHA256_DIGEST_LENGTH);
    Bytes digest(SHA256_DIGEST_LENGTH);
    SHA256(uchar_ptr(ByteView(zeros)), zeros.size(), uchar_ptr(MutByteView(digest)));
    return {.bank = hwtpm::HashAlg::sha256, .index = 16, .digest = std::move(digest)};
}

std::string group_request(const ApproverKey& approver, const Uuid& group) {
    manager::ApprovalList list;
    list.group = group;
    hwtpm::Approval platform;
    platform.selection = {.bank = hwtpm::HashAlg::sha256, .pcrs = {16}};
    platform.values = {measured()};
    const Bytes reference = manager::reference_of(group, list.epoch);
    platform.signature =
        approver.sign(must(hwtpm::approval_message(platform.selection, platform.values, reference), "a platform"));
    list.platforms.push_back(std::move(platform));
    list.signature = approver.sign(manager::encode_for_signing(list));
    return json::serialize(json::object{{"approver", approver.pem()}, {"list", to_hex(manager::encode(list))}});
}

/// f(n) for all n below `count`, by so many threads, each with a worker made by `make`.
template <typename Make>
void in_parallel(std::size_t count, Make make) {
    std::atomic<std::size_t> next{0};
    std::vector<std::string> complaints(management_clients);
    std::vector<std::thread> threads;
    for (std::size_t t = 0; t < management_clients; ++t) {
        threads.emplace_back([&, t] {
            try {
                auto worker = make();
                for (std::size_t n = next++; n < count; n = next++) {
                    worker(n);
                }
            } catch (const std::exception& e) {
                complaints[t] = e.what();
                next = count;
            }
        });
    }
    for (std::thread& t : threads) {
        t.join();
    }
    for (const std::string& complaint : complaints) {
        if (!complaint.empty()) {
            fail(complaint);
        }
    }
}

class Host {
  public:
    Host(const Programs& programs, std::filesystem::path dir)
        : programs_(programs)
        , dir_(std::move(dir)) {
        std::filesystem::create_directories(dir_ / "tpm");
        const std::string socket = (dir_ / "tpm.sock").string();
        tpm_ = Process({programs_.swtpm, "socket", "--tpm2", "--tpmstate", "dir=" + (dir_ / "tpm").string(), "--server",
                        "type=unixio,path=" + socket, "--ctrl", "type=unixio,path=" + socket + ".ctrl", "--flags",
                        "not-need-init,startup-clear"},
                       dir_ / "swtpm.log");
        Client(socket, manage_patience).must(extend_16()); // a platform that can be told from one that measures nothing
    }
    /// Microseconds to its first answer.
    double start(bool create) {
        std::vector<std::string> argv{programs_.vtpmd,
                                      "--mode=manager",
                                      "--store=" + store().string(),
                                      "--tpm=swtpm:unix:" + (dir_ / "tpm.sock").string(),
                                      "--seal-pcrs=none",
                                      "--listen=unix:" + link().string(),
                                      "--api=unix:" + api().string()};
        if (create) {
            argv.emplace_back("--create");
        }
        const auto begin = Steady::now();
        manager_ = Process(argv, dir_ / "manager.log");
        try {
            Api(api()).must("GET", "/v1/host");
        } catch (const std::exception& e) {
            fail(fmt::format("the manager: {}\n{}", e.what(), manager_.complaint()));
        }
        return microseconds(Steady::now() - begin);
    }
    void stop() { manager_.stop(); }
    [[nodiscard]] double pss_kib() const {
        const auto pss = manager_.pss_kib();
        return pss ? *pss : -1;
    }
    [[nodiscard]] std::filesystem::path store() const { return dir_ / "manager.img"; }
    [[nodiscard]] std::filesystem::path link() const { return dir_ / "manager.sock"; }
    [[nodiscard]] std::filesystem::path api() const { return dir_ / "api.sock"; }

  private:
    const Programs& programs_;
    std::filesystem::path dir_;
    Process tpm_;
    Process manager_;
};

/// As its instance does after the first command that changes something.
void save_once(const std::filesystem::path& socket, const Uuid& uuid, std::byte mark) {
    Client link(socket, manage_patience);
    const auto exchange = [&](ByteView frame) {
        if (auto answer = proto::parse_response(link.exchange(frame)); !answer) {
            fail(fmt::format("vTPM {}: {}", to_string(uuid), answer.error().message));
        }
    };
    exchange(proto::encode_hello({.uuid = uuid}));
    const Bytes key(proto::hash_key_long, mark);
    exchange(proto::encode_save(key));
}

std::vector<double> repeat(std::size_t times, const std::function<double()>& f) {
    std::vector<double> out;
    out.reserve(times);
    for (std::size_t i = 0; i < times; ++i) {
        out.push_back(f());
    }
    return out;
}

class Management {
  public:
    Management(const Programs& programs, const std::filesystem::path& dir, const Extent& extent)
        : extent_(extent)
        , host_(programs, dir) {}

    ManagementFigures run() {
        host_.start(true);
        figures_.empty_pss_kib = host_.pss_kib();
        figures_.empty_start_us = restart();
        make_groups();
        figures_.groups_start_us = restart();
        fill();
        save();
        figures_.start_us = restart();
        ask();
        measure_size();
        return figures_;
    }

  private:
    void make_groups() {
        const ApproverKey approver;
        Api api(host_.api());
        std::vector<double> times;
        for (std::size_t n = 0; n < extent_.groups; ++n) {
            groups_.push_back(random_uuid());
            times.push_back(api.timed("POST", "/v1/groups", group_request(approver, groups_.back())));
        }
        figures_.create_group = percentiles(std::move(times));
    }
    [[nodiscard]] std::string new_vtpm(std::size_t n, const Uuid& uuid) const {
        return fmt::format(R"({{"uuid":"{}","group":"{}"}})", to_string(uuid), to_string(groups_[n % groups_.size()]));
    }
    void fill() {
        std::generate_n(std::back_inserter(vtpms_), extent_.vtpms, random_uuid);
        const auto begin = Steady::now();
        in_parallel(vtpms_.size(), [this] {
            return [this, api = std::make_shared<Api>(host_.api())](std::size_t n) {
                (void)api->must("POST", "/v1/vtpms", new_vtpm(n, vtpms_[n]));
            };
        });
        const auto time = std::chrono::duration<double>(Steady::now() - begin);
        figures_.fill_per_second = static_cast<double>(vtpms_.size()) / time.count();
    }
    /// Every vTPM once, and again until the journal has written a checkpoint of them all.
    void save() {
        for (unsigned round = 0; round < save_rounds && checkpoint_bytes() < static_cast<double>(vtpms_.size() * 100);
             ++round) {
            in_parallel(vtpms_.size(), [this, round] {
                return
                    [this, round](std::size_t n) { save_once(host_.link(), vtpms_[n], static_cast<std::byte>(round)); };
            });
        }
    }
    [[nodiscard]] double checkpoint_bytes() const {
        const json::object host = json::parse(Api(host_.api()).must("GET", "/v1/host")).as_object();
        return host.at("store_bytes_used").to_number<double>();
    }
    double restart() {
        std::vector<double> times;
        for (std::size_t n = 0; n < extent_.restarts; ++n) {
            host_.stop();
            times.push_back(host_.start(false));
        }
        return percentiles(std::move(times)).p50_us;
    }
    [[nodiscard]] std::string some_vtpm() {
        return "/v1/vtpms/" + to_string(vtpms_[std::uniform_int_distribution<std::size_t>(0, vtpms_.size() - 1)(any_)]);
    }
    void ask() {
        Api api(host_.api());
        const auto get = [&api](std::string target) { return [&api, target] { return api.timed("GET", target); }; };
        figures_.list_bytes = static_cast<double>(api.must("GET", "/v1/vtpms").size());
        figures_.list = percentiles(repeat(extent_.lists, get("/v1/vtpms")));
        figures_.list_groups = percentiles(repeat(extent_.lists, get("/v1/groups")));
        figures_.metrics = percentiles(repeat(extent_.lists, get("/metrics")));
        figures_.show = percentiles(repeat(extent_.shows, [&] { return api.timed("GET", some_vtpm()); }));
        figures_.create = percentiles(repeat(extent_.creates, [&, n = 0U]() mutable {
            return api.timed("POST", "/v1/vtpms", new_vtpm(n++, random_uuid()));
        }));
        ask_while_listed(api);
    }
    void ask_while_listed(Api& api) {
        std::atomic<bool> stop{false};
        std::atomic<bool> started{false};
        std::thread other([&] {
            try {
                Api lister(host_.api());
                while (!stop) {
                    (void)lister.must("GET", "/v1/vtpms");
                    started = true;
                }
            } catch (const std::exception& e) {
                complaint_ = e.what();
                started = true;
            }
        });
        while (!started) {
            std::this_thread::yield();
        }
        figures_.show_while_listed = percentiles(repeat(extent_.lists * 10, [&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(1)); // at any point of the list
            return api.timed("GET", some_vtpm());
        }));
        stop = true;
        other.join();
        if (!complaint_.empty()) {
            fail(complaint_);
        }
    }
    void measure_size() {
        figures_.pss_kib = host_.pss_kib();
        struct stat s {};
        if (::stat(host_.store().c_str(), &s) != 0) {
            fail("the store is gone");
        }
        figures_.image_bytes = static_cast<double>(s.st_size);
        figures_.record_bytes = checkpoint_bytes();
    }

    const Extent& extent_;
    Host host_;
    std::vector<Uuid> groups_;
    std::vector<Uuid> vtpms_;
    std::mt19937_64 any_{1}; // NOLINT(cert-msc51-cpp): which vTPM is asked for need not be a secret
    std::string complaint_;
    ManagementFigures figures_;
};

} // namespace

ManagementFigures manage(const Programs& programs, const std::filesystem::path& dir, const Extent& extent) {
    return Management(programs, dir, extent).run();
}

} // namespace bench
