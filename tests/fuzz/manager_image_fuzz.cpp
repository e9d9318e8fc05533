// A manager's image that anybody may have written. The input is a program of patches on a good image, so that digests do
// not end every run at once: u8 flags (1: digests of the superblocks are made right again, 2: those of the halves' headers
// too, 4: the checks of the frames' headers too), then patches { u24 offset, u8 length, bytes }.
#include "fault_file.hpp"
#include "fuzz.hpp"
#include "list_client.hpp"
#include "run_task.hpp"
#include "store/journal.hpp"
#include "store/journal_format.hpp"

#include <algorithm>
#include <initializer_list>

namespace manager_image_fuzz {

using namespace vtpmd;
using namespace vtpmd::store;

using test::run_task;

namespace {

constexpr std::size_t region = 65'536;
constexpr std::size_t halves_at = 2 * region;
constexpr std::size_t half = (ManagerImage::min_size - halves_at) / 2;
const Bytes key(32, std::byte{5});

struct Good {
    Bytes content;
    std::vector<Bytes> records;
};

const Good& good() {
    static const Good image = [] {
        asio::io_context loop;
        const Log log(LogLevel::error, [](LogLevel, std::string_view) {});
        test::FaultDisk disk;
        test::ListClient client;
        ManagerImage::CreateOptions options{Uuid{}, ManagerImage::min_size, Bytes(50, std::byte{1})};
        auto made = run_task(loop, ManagerImage::create(disk.open(), std::move(options), log)).value();
        run_task(loop, made->start_journal(SecretBytes(key), client)).value();
        for (unsigned i = 0; i < 4; ++i) {
            run_task(loop, made->append(Bytes(100 + 300 * i, static_cast<std::byte>(i)))).value();
            if (i == 1) {
                run_task(loop, made->checkpoint()).value();
            }
        }
        run_task(loop, made->close());
        return Good{disk.content(), client.records};
    }();
    return image;
}

void put_digest(Bytes& content, std::size_t at, std::size_t size, std::size_t digest_bytes) {
    const Digest digest = sha256({ByteView(content).subspan(at, size - digest_bytes)});
    std::copy_n(digest.begin(), digest_bytes, content.begin() + static_cast<std::ptrdiff_t>(at + size - digest_bytes));
}

void put_checks(Bytes& content, unsigned flags) {
    if ((flags & 1U) != 0) {
        put_digest(content, 0, region, digest_size);
        put_digest(content, region, region, digest_size);
    }
    for (const std::size_t at : {halves_at, halves_at + half}) {
        if ((flags & 2U) != 0) {
            put_digest(content, at, journal::sector_size, digest_size);
        }
        for (std::size_t frame = at + journal::sector_size; (flags & 4U) != 0 && frame < at + 12 * journal::sector_size;
             frame += journal::sector_size) {
            if (!std::ranges::equal(ByteView(content).subspan(frame, 4), as_bytes("VTPF"))) {
                continue;
            }
            put_digest(content, frame, journal::header_size, 16);
        }
    }
}

std::vector<Bytes> seeds() {
    std::vector<Bytes> seeds{Bytes(1)};
    auto add = [&](std::initializer_list<unsigned> bytes) {
        Bytes& seed = seeds.emplace_back();
        for (unsigned b : bytes) {
            seed.push_back(static_cast<std::byte>(b));
        }
    };
    constexpr unsigned second_half = (halves_at + half) >> 16U;
    for (unsigned flags : {0U, 1U, 2U, 4U, 7U}) {
        add({flags, 0, 0, 40, 4, 0, 0, 0, 0, 1, 0, 40, 4, 0, 0, 0, 0});
        add({flags, 0, 0, 48, 8, 0, 0, 0, 0, 0, 1, 0, 0});
        add({flags, second_half, 0, 8, 8, 0, 0, 0, 0, 0, 0, 0, 9});
        add({flags, second_half, 2, 24, 4, 0, 0, 4, 0});
        add({flags, second_half, 4, 4, 4, 0, 0, 0, 1});
        add({flags, second_half, 8, 24, 4, 0, 0xff, 0xfe, 0});
        add({flags, 2, 0, 0, 16, 0x56, 0x54, 0x50, 0x4d, 0x48, 0x41, 0x4c, 0x46, 0, 0, 0, 0, 0, 0, 0, 3});
    }
    return seeds;
}

void run(ByteView input) {
    Bytes content = good().content;
    WireReader r(input);
    const unsigned flags = r.u8();
    while (r.ok() && r.remaining() >= 5) {
        std::size_t at = static_cast<std::size_t>(r.u8()) << 16U;
        at |= r.be16();
        const ByteView patch = r.bytes(std::min<std::size_t>(r.u8(), r.remaining()));
        if (at + patch.size() <= content.size()) {
            std::ranges::copy(patch, content.begin() + static_cast<std::ptrdiff_t>(at));
        }
    }
    put_checks(content, flags);
    test::FaultDisk disk(std::move(content));
    asio::io_context loop;
    const Log log(LogLevel::error, [](LogLevel, std::string_view) {});
    auto image = run_task(loop, ManagerImage::open(disk.open(), log));
    if (image && (*image)->journal_started()) {
        test::ListClient client;
        auto opened = run_task(loop, (*image)->open_journal(SecretBytes(key), client));
        // Without the key, records can be cut off the end (the freshness counter is for that), never made or changed.
        const auto& all = good().records;
        const bool beginning = client.records.size() <= all.size() &&
                               std::equal(client.records.begin(), client.records.end(), all.begin());
        fuzz::fuzz_check(!opened || beginning, "no record is made up or changed");
        run_task(loop, (*image)->close());
    }
}

const fuzz::Harness harness("manager_image", seeds, run);

} // namespace

} // namespace manager_image_fuzz
