// Images of every format version there ever was can be opened (tests/data/README.md says how each was made).
#include "check.hpp"
#include "fault_file.hpp"
#include "list_client.hpp"
#include "run_task.hpp"
#include "store/journal.hpp"
#include "store/state_image.hpp"
#include "test_data.hpp"
#include "util/text.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>

namespace store_golden_test {

using namespace vtpmd;
using namespace vtpmd::store;
using test::FaultDisk;
using test::run_task;

namespace {

const std::string data_directory = VTPMD_TEST_DATA;
const ImageIdentity state_identity{parse_uuid("01234567-89ab-cdef-0123-456789abcdef").value(), TpmVersion::tpm20};
const Uuid manager_uuid = parse_uuid("fedcba98-7654-3210-fedc-ba9876543210").value();

/// Content that a reader of the file can recognise.
Bytes text_of(std::string_view what, unsigned number, std::size_t size) {
    const std::string line = fmt::format("{} {}\n", what, number);
    Bytes out;
    while (out.size() < size) {
        out.push_back(static_cast<std::byte>(line[out.size() % line.size()]));
    }
    return out;
}

Bytes read_whole(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    const std::string content{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    REQUIRE_MESSAGE(!content.empty(), path);
    return to_bytes(as_bytes(content));
}

void write_whole(const std::string& path, ByteView content) {
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
    REQUIRE(out.good());
}

struct Fixture {
    asio::io_context loop;
    std::vector<std::string> lines;
    Log log{LogLevel::debug, [this](LogLevel, std::string_view line) { lines.emplace_back(line); }};
    SecretBytes journal_key{text_of("key", 1, 32)};
};

} // namespace

TEST_SUITE("store") {
    TEST_CASE_FIXTURE(Fixture, "golden: the image of a vTPM, format version 1") {
        FaultDisk disk(read_whole(data_directory + "/state-v1.img"), true);
        const Bytes hex = read_whole(data_directory + "/state-v1.record");
        const std::string_view digits(reinterpret_cast<const char*>(hex.data()), 2 * hash_key_size);
        auto image = run_task(loop, StateImage::open(disk.open(), state_identity, log)).value();
        CHECK(image->had_state());
        auto state = run_task(loop, image->load(from_hex(digits).value()));
        REQUIRE(state);
        CHECK(state->equals(text_of("state", 3, 5000)));
        CHECK(lines.empty());
        CHECK(disk.operations() == 0);
    }

    TEST_CASE_FIXTURE(Fixture, "golden: the image of a manager, format version 1") {
        FaultDisk disk(read_whole(data_directory + "/manager-v1.img"), true);
        test::ListClient client;
        auto image = run_task(loop, ManagerImage::open(disk.open(), log)).value();
        CHECK(image->uuid() == manager_uuid);
        CHECK(image->superblock() == text_of("superblock", 2, 700));
        REQUIRE(run_task(loop, image->open_journal(std::move(journal_key), client)));
        REQUIRE(client.records.size() == 12);
        for (unsigned i = 0; i < 12; ++i) {
            CHECK(client.records[i] == text_of("record", i, 150 * i));
        }
        CHECK(lines.empty());
        run_task(loop, image->close());
    }

    // Writes both into the directory that VTPMD_MAKE_GOLDEN names. Only for a new format version: see tests/data/README.md.
    TEST_CASE_FIXTURE(Fixture, "golden: make the images" * doctest::skip()) {
        const char* where = std::getenv("VTPMD_MAKE_GOLDEN");
        REQUIRE(where != nullptr);
        const std::string directory = where;
        {
            FaultDisk disk(Bytes(8192 + 2 * 256 * 1024), true);
            auto image = run_task(loop, StateImage::create(disk.open(), state_identity, log)).value();
            SecretBytes record;
            for (unsigned i = 1; i <= 3; ++i) {
                record = run_task(loop, image->prepare(text_of("state", i, 5000))).value();
                REQUIRE(run_task(loop, image->accept()));
            }
            write_whole(directory + "/state-v1.img", disk.content());
            write_whole(directory + "/state-v1.record", as_bytes(to_hex(record.view()) + "\n"));
        }
        FaultDisk disk;
        test::ListClient client;
        ManagerImage::CreateOptions options{manager_uuid, ManagerImage::min_size, text_of("superblock", 1, 700)};
        auto image = run_task(loop, ManagerImage::create(disk.open(), std::move(options), log)).value();
        REQUIRE(run_task(loop, image->start_journal(std::move(journal_key), client)));
        REQUIRE(run_task(loop, image->replace_superblock(text_of("superblock", 2, 700))));
        for (unsigned i = 0; i < 12; ++i) {
            REQUIRE(run_task(loop, image->append(text_of("record", i, 150 * i))));
            if (i == 6) {
                REQUIRE(run_task(loop, image->checkpoint()));
            }
        }
        run_task(loop, image->close());
        write_whole(directory + "/manager-v1.img", disk.content());
    }
}

} // namespace store_golden_test
