// Simulated Xen: domains in one process, whose pages are memory files mapped twice and whose events are counted on
// eventfds, behind the same Fabric as the real thing. For tests, and for benchmarks off Xen. Ports and pages may be
// used from several threads (a guest on one, its back end on another).
#pragma once

#include "util/uuid.hpp"
#include "xen/fabric.hpp"
#include "xen/sim_store.hpp"

namespace vtpmd::xen {

/// Ports and grants of all simulated domains.
class SimMachine;

class SimHost {
  public:
    SimHost(asio::any_io_executor executor, Clock& clock, const Log& log);
    SimHost(const SimHost&) = delete;
    SimHost& operator=(const SimHost&) = delete;
    ~SimHost();

    /// What a program in this domain sees. Must not outlive the host. Not started.
    std::unique_ptr<Fabric> fabric(DomId domain);
    /// The same for a loop on another thread.
    std::unique_ptr<Fabric> fabric(DomId domain, asio::any_io_executor executor, Clock& clock);

    [[nodiscard]] SimStore& store() noexcept { return store_; }
    /// What the toolstack writes for `vtpm=["backend=B,uuid=U"]` of domain `front`.
    void add_vtpm(DomId back, DomId front, unsigned handle, const Uuid& uuid);
    /// Both directories go, as when the domain is destroyed.
    void remove_vtpm(DomId back, DomId front, unsigned handle);
    static std::string back_dir(DomId back, DomId front, unsigned handle);
    static std::string front_dir(DomId front, unsigned handle);
    /// The domain's XSM label; without one, this Xen has no labels for it.
    void set_label(DomId domain, std::string label);
    /// From now on every question for a label fails, as without the right to ask.
    void keep_labels_secret();
    /// Notifications sent by all domains so far.
    [[nodiscard]] std::uint64_t notifications() const noexcept;

    /// Before the destructor; fabrics go first.
    Task<> stop();

  private:
    asio::any_io_executor executor_;
    Clock& clock_;
    const Log& log_;
    std::shared_ptr<SimMachine> machine_;
    SimStore store_;
};

} // namespace vtpmd::xen
