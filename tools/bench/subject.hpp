// What is measured: a fleet of vTPMs, ours (one manager, one instance each) or swtpm's (one process each).
#pragma once

#include "device_model.hpp"
#include "process.hpp"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace bench {

struct Programs {
    std::string vtpmd;
    std::string swtpm;
};

class Fleet {
  public:
    virtual ~Fleet() = default;
    [[nodiscard]] virtual std::string name() const = 0;
    /// Starts vTPM number `n` (its state exists already if it ran before); does not wait for it.
    virtual void start(std::size_t n) = 0;
    virtual void stop(std::size_t n) = 0;
    /// Connects to vTPM n as `Reach` says, waiting until it listens. Throws with what the program said if it does not.
    virtual std::unique_ptr<Client> connect(std::size_t n) = 0;
    /// Of a fleet that device models reach: connects to vTPM n, which is off. Throws likewise.
    virtual std::unique_ptr<DeviceModel> attach(std::size_t n) = 0;
    /// The process that is vTPM n.
    virtual Process& process(std::size_t n) = 0;
    /// The processes that serve all vTPMs together, if there are any.
    virtual Process* shared() { return nullptr; }
    /// The file to fsync after each answer for the change to be durable; nothing if the TPM did it itself.
    [[nodiscard]] virtual std::optional<std::filesystem::path> unsynced_state(std::size_t n) const = 0;
};

enum class Reach {
    socket, ///< a Unix socket for commands; the TPM is started for its guest
    device_model, ///< QEMU's way; connect() is the machine's start as far as the TPM sees it, with the firmware's TPM2_Startup
    old_host, ///< likewise, and another host may ask for its vTPMs
    new_host, ///< likewise, but its vTPMs are to come from the old host
};
struct Place {
    std::filesystem::path dir; ///< must exist and be empty; nothing in it is removed
    Reach reach = Reach::socket;
    std::filesystem::path shared = {}; ///< of the two hosts: the sockets over which one asks the other
};
std::unique_ptr<Fleet> make_ours(const Programs& programs, Place place);
std::unique_ptr<Fleet> make_swtpm(const Programs& programs, Place place);

} // namespace bench
