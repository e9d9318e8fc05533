#include "xen/sim.hpp"

#include <atomic>
#include <cerrno>
#include <deque>
#include <map>
#include <mutex>
#include <sys/eventfd.h>
#include <sys/mman.h>

namespace vtpmd::xen {

namespace {

class SimPorts;

struct SimPort {
    SimPorts* device;
    DomId remote;
    Port remote_port = 0; ///< 0: nobody has bound it
    bool masked = false;
    bool pending = false;
};

using PortKey = std::pair<DomId, Port>;

} // namespace

class SimMachine {
  public:
    SimMachine();
    SimMachine(const SimMachine&) = delete;
    SimMachine& operator=(const SimMachine&) = delete;
    ~SimMachine() = default;

    std::mutex mutex;
    std::map<PortKey, SimPort> ports;
    std::map<DomId, Port> next_port;
    std::map<DomId, std::string> labels;
    bool labels_fail = false;
    std::atomic<std::uint64_t> notifications{0};

    struct Grant {
        std::size_t page;
        DomId to;
    };
    UniqueFd memory;
    std::size_t pages = 0;
    std::vector<std::size_t> free_pages;
    std::map<std::pair<DomId, GrantRef>, Grant> grants;
    std::map<DomId, GrantRef> next_ref;
};

SimMachine::SimMachine()
    : memory(::memfd_create("vtpmd-sim", MFD_CLOEXEC)) {}

namespace {

class SimPorts final : public PortDevice {
  public:
    SimPorts(std::shared_ptr<SimMachine> machine, DomId domain)
        : machine_(std::move(machine))
        , domain_(domain)
        , event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
    SimPorts(const SimPorts&) = delete;
    SimPorts& operator=(const SimPorts&) = delete;
    ~SimPorts() override = default;

    [[nodiscard]] int fd() const override { return event_.get(); }

    Result<std::optional<Port>> pending() override {
        std::lock_guard lock(machine_->mutex);
        while (!ready_.empty()) {
            Port port = ready_.front();
            ready_.pop_front();
            if (auto it = machine_->ports.find({domain_, port}); it != machine_->ports.end()) {
                it->second.pending = false;
                it->second.masked = true;
                return std::optional<Port>{port};
            }
        }
        std::uint64_t count = 0;
        (void)!::read(event_.get(), &count, sizeof count);
        return std::optional<Port>{};
    }
    Result<void> unmask(Port port) override {
        std::lock_guard lock(machine_->mutex);
        auto it = machine_->ports.find({domain_, port});
        if (it == machine_->ports.end()) {
            return errno_error(EINVAL, "unmask");
        }
        it->second.masked = false;
        if (it->second.pending) {
            deliver(port);
        }
        return {};
    }
    Result<void> notify(Port port) override {
        machine_->notifications.fetch_add(1, std::memory_order_relaxed);
        std::lock_guard lock(machine_->mutex);
        auto it = machine_->ports.find({domain_, port});
        if (it == machine_->ports.end()) {
            return errno_error(ENOENT, fmt::format("notify of event channel {}", port));
        }
        auto far = machine_->ports.find({it->second.remote, it->second.remote_port});
        if (far != machine_->ports.end() && !far->second.pending) {
            far->second.pending = true;
            if (!far->second.masked) {
                far->second.device->deliver(far->first.second);
            }
        }
        return {};
    }
    Result<Port> bind_unbound(DomId remote) override {
        std::lock_guard lock(machine_->mutex);
        return add(remote, 0);
    }
    Result<Port> bind_interdomain(DomId remote, Port remote_port) override {
        std::lock_guard lock(machine_->mutex);
        auto far = machine_->ports.find({remote, remote_port});
        if (far == machine_->ports.end() || far->second.remote != domain_ || far->second.remote_port != 0) {
            return errno_error(EINVAL, fmt::format("binding event channel {} of domain {}", remote_port, remote));
        }
        Port port = add(remote, remote_port);
        far->second.remote_port = port;
        return port;
    }
    void unbind(Port port) override {
        std::lock_guard lock(machine_->mutex);
        auto it = machine_->ports.find({domain_, port});
        if (it == machine_->ports.end()) {
            return;
        }
        auto far = machine_->ports.find({it->second.remote, it->second.remote_port});
        if (far != machine_->ports.end()) {
            far->second.remote_port = 0; // the other end is unbound again and can be bound anew
        }
        machine_->ports.erase(it);
    }
    Result<std::optional<std::string>> peer_label(Port port) override {
        std::lock_guard lock(machine_->mutex);
        if (machine_->labels_fail) {
            return errno_error(EACCES, fmt::format("XSM label of the peer of event channel {}", port));
        }
        auto it = machine_->ports.find({domain_, port});
        auto label = it == machine_->ports.end() ? machine_->labels.end() : machine_->labels.find(it->second.remote);
        return label == machine_->labels.end() ? std::optional<std::string>{} : std::optional(label->second);
    }

  private:
    Port add(DomId remote, Port remote_port) {
        Port port = ++machine_->next_port[domain_];
        machine_->ports[{domain_, port}] = SimPort{this, remote, remote_port};
        return port;
    }
    void deliver(Port port) {
        ready_.push_back(port);
        if (ready_.size() == 1) {
            std::uint64_t one = 1;
            (void)!::write(event_.get(), &one, sizeof one);
        }
    }

    std::shared_ptr<SimMachine> machine_;
    DomId domain_;
    UniqueFd event_;
    std::deque<Port> ready_;
};

class SimPages final : public Pages {
  public:
    SimPages(std::shared_ptr<SimMachine> machine, void* at, std::size_t count)
        : machine_(std::move(machine))
        , at_(at)
        , count_(count) {}
    SimPages(const SimPages&) = delete;
    SimPages& operator=(const SimPages&) = delete;
    ~SimPages() override {
        ::munmap(at_, count_ * page_size);
        std::lock_guard lock(machine_->mutex);
        for (GrantRef ref : refs_) {
            machine_->grants.erase({owner_, ref});
        }
    }
    [[nodiscard]] MutByteView bytes() noexcept override { return {static_cast<std::byte*>(at_), count_ * page_size}; }
    [[nodiscard]] std::span<const GrantRef> refs() const noexcept override { return refs_; }

    void granted(DomId owner, std::vector<GrantRef> refs) {
        owner_ = owner;
        refs_ = std::move(refs);
    }

  private:
    std::shared_ptr<SimMachine> machine_;
    void* at_;
    std::size_t count_;
    DomId owner_ = 0;
    std::vector<GrantRef> refs_;
};

class SimGrants final : public GrantDevice {
  public:
    SimGrants(std::shared_ptr<SimMachine> machine, DomId domain)
        : machine_(std::move(machine))
        , domain_(domain) {}

    Result<std::unique_ptr<Pages>> map(DomId domain, std::span<const GrantRef> refs) override {
        std::lock_guard lock(machine_->mutex);
        std::vector<std::size_t> where;
        for (GrantRef ref : refs) {
            auto it = machine_->grants.find({domain, ref});
            if (it == machine_->grants.end() || it->second.to != domain_) {
                return errno_error(EINVAL, fmt::format("mapping grant {} of domain {}", ref, domain));
            }
            where.push_back(it->second.page);
        }
        return map_pages(where);
    }
    Result<std::unique_ptr<Pages>> share(DomId domain, std::size_t count) override {
        std::lock_guard lock(machine_->mutex);
        std::size_t first = machine_->pages;
        machine_->pages += count;
        if (::ftruncate(machine_->memory.get(), static_cast<off_t>(machine_->pages * page_size)) != 0) {
            return errno_error(errno, "memory of simulated domains");
        }
        std::vector<std::size_t> where;
        std::vector<GrantRef> refs;
        for (std::size_t i = 0; i < count; ++i) {
            GrantRef ref = 8 + machine_->next_ref[domain_]++; // the first eight are Xen's own
            where.push_back(first + i);
            refs.push_back(ref);
            machine_->grants[{domain_, ref}] = {first + i, domain};
        }
        auto pages = map_pages(where);
        if (pages) {
            static_cast<SimPages&>(**pages).granted(domain_, std::move(refs));
        }
        return pages;
    }

  private:
    Result<std::unique_ptr<Pages>> map_pages(const std::vector<std::size_t>& where) {
        std::size_t size = where.size() * page_size;
        void* at = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at == MAP_FAILED) {
            return errno_error(errno, "mmap");
        }
        for (std::size_t i = 0; i < where.size(); ++i) {
            if (::mmap(static_cast<char*>(at) + i * page_size, page_size, PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_FIXED, machine_->memory.get(),
                       static_cast<off_t>(where[i] * page_size)) == MAP_FAILED) {
                ::munmap(at, size);
                return errno_error(errno, "mmap");
            }
        }
        return std::make_unique<SimPages>(machine_, at, where.size());
    }

    std::shared_ptr<SimMachine> machine_;
    DomId domain_;
};

} // namespace

SimHost::SimHost(asio::any_io_executor executor, Clock& clock, const Log& log)
    : executor_(executor)
    , clock_(clock)
    , log_(log)
    , machine_(std::make_shared<SimMachine>())
    , store_(executor, log) {}

SimHost::~SimHost() = default;

std::unique_ptr<Fabric> SimHost::fabric(DomId domain) { return fabric(domain, executor_, clock_); }

std::unique_ptr<Fabric> SimHost::fabric(DomId domain, asio::any_io_executor executor, Clock& clock) {
    std::string home = fmt::format("/local/domain/{}", domain);
    if (!store_.get(home)) {
        store_.make_dir(home, 0, domain);
        store_.set(home + "/domid", std::to_string(domain));
    }
    Fabric::Parts parts{std::make_unique<SimPorts>(machine_, domain), std::make_unique<SimGrants>(machine_, domain),
                        [this, domain] { return store_.dial(domain); }};
    return std::make_unique<Fabric>(std::move(executor), clock, log_, std::move(parts));
}

std::string SimHost::back_dir(DomId back, DomId front, unsigned handle) {
    return fmt::format("/local/domain/{}/backend/vtpm/{}/{}", back, front, handle);
}

std::string SimHost::front_dir(DomId front, unsigned handle) {
    return fmt::format("/local/domain/{}/device/vtpm/{}", front, handle);
}

void SimHost::add_vtpm(DomId back, DomId front, unsigned handle, const Uuid& uuid) {
    std::string be = back_dir(back, front, handle);
    std::string fe = front_dir(front, handle);
    store_.make_dir(fe, front, back);
    store_.set(fe + "/backend", be);
    store_.set(fe + "/backend-id", std::to_string(back));
    store_.set(fe + "/state", "1");
    store_.set(fe + "/handle", std::to_string(handle));
    store_.make_dir(be, back, front);
    store_.set(be + "/frontend", fe);
    store_.set(be + "/frontend-id", std::to_string(front));
    store_.set(be + "/online", "1");
    store_.set(be + "/state", "1");
    store_.set(be + "/handle", std::to_string(handle));
    store_.set(be + "/uuid", to_string(uuid));
    store_.set(be + "/resume", "False");
}

void SimHost::remove_vtpm(DomId back, DomId front, unsigned handle) {
    store_.remove(front_dir(front, handle));
    store_.remove(back_dir(back, front, handle));
    const std::string parent = fmt::format("/local/domain/{}/backend/vtpm/{}", back, front);
    if (store_.list(parent).empty()) { // as libxl does
        store_.remove(parent);
    }
}

void SimHost::set_label(DomId domain, std::string label) {
    std::lock_guard lock(machine_->mutex);
    machine_->labels.insert_or_assign(domain, std::move(label));
}

void SimHost::keep_labels_secret() {
    std::lock_guard lock(machine_->mutex);
    machine_->labels_fail = true;
}

std::uint64_t SimHost::notifications() const noexcept { return machine_->notifications.load(); }

Task<> SimHost::stop() { co_await store_.down(); }

} // namespace vtpmd::xen
