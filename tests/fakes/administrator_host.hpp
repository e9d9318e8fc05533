// A manager's administrator in scenarios: a link to the real key service, groups, vault and journal, on a fake disk and a fake TPM.
#pragma once

#include "manager/compat/vtpmmgr/administration.hpp"

#include "manager_machine.hpp"
#include "memory_channel.hpp"
#include "old_approver.hpp"
#include "tpm/commands.hpp"
#include "tpm/pcr.hpp"
#include "util/text.hpp"
#include "util/wire.hpp"

namespace vtpmd::test::administrator {

using namespace manager;
namespace management = proto::management;

inline constexpr std::uint8_t a = 0xa0;
inline constexpr std::uint8_t b = 0xb0;
inline constexpr management::PcrMask pcr_4 = 1U << 4U;
inline constexpr std::uint32_t auth_fail = 1;
inline constexpr std::uint32_t bad_index = 2;
inline constexpr std::uint32_t bad_parameter = 3;
inline constexpr std::uint32_t bad_ordinal = 0x0a;
inline constexpr std::uint32_t bad_size = 0x19;
inline constexpr std::uint32_t busy = 0x402;
inline constexpr std::uint32_t rolled_back = 0x406;

inline Uuid id_of(std::uint8_t kind, std::uint16_t n) {
    Uuid u;
    u.bytes[0] = static_cast<std::byte>(kind);
    u.bytes[14] = static_cast<std::byte>(n >> 8U);
    u.bytes[15] = static_cast<std::byte>(n);
    return u;
}
inline const Uuid admin_uuid = id_of(0xad, 1);
inline Uuid vtpm_uuid(std::uint16_t n) { return id_of(0x76, n); }

struct Answer {
    std::uint32_t code = 0;
    Bytes body;
};

struct Host {
    /// `store_size` in bytes; 0: the machine's own.
    explicit Host(TpmVersion version = TpmVersion::tpm20, std::uint64_t store_size = 0) {
        m.tpm.version = version;
        if (store_size != 0) {
            m.options.size = store_size;
        }
        if (version == TpmVersion::tpm12) {
            m.tpm.banks = {hwtpm::HashAlg::sha1};
        }
        m.options.seal_pcrs = hwtpm::PcrSelection{.bank = hwtpm::HashAlg::sha1, .pcrs = {0}}; // opens on A and on B
        configure(a);
        REQUIRE(m.create());
        start();
    }
    ~Host() { stop(); }
    void start() {
        const auto executor = m.loop.io.get_executor();
        groups.emplace(Groups::Parts{.executor = executor, .vault = *m.vault, .root = *m.root, .log = m.loop.log});
        m.loop.run(groups->open_all());
        service = std::make_unique<KeyService>(
            KeyService::Options{.admin = admin_uuid},
            KeyService::Parts{.executor = executor,
                              .vault = *m.vault,
                              .root = *m.root,
                              .clock = m.loop.clock,
                              .log = m.loop.log,
                              .admit = [this](const Uuid& u, const proto::BootHash& l) { return groups->admit(u, l); },
                              .administer = [this](Bytes f) { return administration->run(std::move(f)); }});
        administration.emplace(Administration::Options{.admin = admin_uuid},
                               Administration::Parts{.vault = *m.vault,
                                                     .groups = *groups,
                                                     .service = *service,
                                                     .root = *m.root,
                                                     .remove_vtpm = [this](Uuid uuid) {
                                                         return service->remove(uuid, TombstoneRecord::Reason::deleted);
                                                     }});
        link = connect({.made_for = admin_uuid, .named_by_transport = true, .peer_gone = {}});
    }
    void stop() {
        link.reset();
        if (service) {
            service->stop();
            m.loop.settle();
            service.reset();
        }
        groups.reset();
    }
    void configure(std::uint8_t configuration) {
        m.tpm.pcrs[{hwtpm::HashAlg::sha1, 4}] = Bytes(20, static_cast<std::byte>(configuration));
    }
    void reboot(std::uint8_t configuration) {
        stop();
        REQUIRE(m.off());
        configure(configuration);
        REQUIRE(m.open());
        start();
    }
    std::unique_ptr<fakes::MemoryChannel> connect(LinkInfo info) {
        auto pair = fakes::MemoryChannel::make(m.loop.io.get_executor());
        (void)m.loop.start(service->serve(std::move(pair.b), std::move(info)));
        return std::move(pair.a);
    }
    Answer ask(fakes::MemoryChannel& channel, const Bytes& frame) {
        REQUIRE(m.loop.run(channel.send(frame)));
        auto answer = m.loop.run(channel.receive());
        REQUIRE(answer);
        auto header = proto::parse_frame(*answer);
        REQUIRE(header);
        return {.code = header->code, .body = to_bytes(proto::body_of(*answer))};
    }
    Answer ask(const management::Request& request) { return ask(*link, encode(request)); }
    /// What `ask` brings when all is well.
    Bytes tell(const management::Request& request) {
        Answer answer = ask(request);
        CHECK(answer.code == 0);
        return answer.body;
    }
    std::uint32_t count() { return WireReader(tell(management::GroupList{})).be32(); }
    /// Of a group, without its UUID.
    Bytes shown(std::uint32_t group) {
        Bytes body = tell(management::GroupShow{group});
        REQUIRE(body.size() >= 16);
        return Bytes(body.begin() + 16, body.end());
    }
    [[nodiscard]] static management::Hash composite(std::uint8_t configuration) {
        auto digest =
            hwtpm::pcr_composite({.bank = hwtpm::HashAlg::sha1, .pcrs = {4}},
                                 {{hwtpm::HashAlg::sha1, 4, Bytes(20, static_cast<std::byte>(configuration))}});
        management::Hash out{};
        std::ranges::copy(digest.value(), out.begin());
        return out;
    }
    [[nodiscard]] static management::ConfigList list(std::uint64_t sequence, std::vector<std::uint8_t> configurations) {
        management::ConfigList out{.sequence = sequence, .platforms = {}, .labels = {}};
        for (std::uint8_t c : configurations) {
            out.platforms.push_back(composite(c));
        }
        return out;
    }
    /// A vTPM's link: the mark of what it has (0: nothing), or the status that refused it; saves `mark` if given.
    Result<int> start_vtpm(std::uint16_t n, std::uint8_t mark = 0) {
        auto channel = connect({.made_for = vtpm_uuid(n), .named_by_transport = true, .peer_gone = {}});
        Result<int> out = 0;
        Answer answer = ask(*channel, proto::encode_load());
        if (answer.code == 0) {
            out = std::to_integer<int>(answer.body.front());
        } else if (answer.code != bad_index) { // which is "nothing was ever saved"
            out = make_error(proto::errc_of(answer.code), "refused");
        }
        if (out && mark != 0) {
            CHECK(ask(*channel, proto::encode_save(Bytes(64, static_cast<std::byte>(mark)))).code == 0);
        }
        channel->close();
        m.loop.settle();
        return out;
    }

    fakes::Machine m;
    std::optional<Groups> groups;
    std::unique_ptr<KeyService> service;
    std::optional<Administration> administration;
    std::unique_ptr<fakes::MemoryChannel> link;
};

} // namespace vtpmd::test::administrator
