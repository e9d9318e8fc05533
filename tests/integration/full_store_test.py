#!/usr/bin/python3
"""A store that is full, one that grows, and stores that an older program broke or filled."""
import os
import tarfile

import harness
from store_case import Stored

harness.need_root()
VTPMCTL = os.environ["VTPMCTL"]
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data")


class OlderPrograms(Stored):
    def unpack(self, name):
        with tarfile.open(os.path.join(DATA, name)) as archive:
            archive.extract("m.img", self.dir)
            archive.extract("root/tpm20.state", self.dir)
        os.rename(self.path("m.img"), self.manager.store)
        self.manager.tpm = f"embedded:{self.path('root')}"

    def opens(self, name, said):
        self.unpack(name)
        self.manager.start()
        log = self.manager.process.log()
        self.assertIn("set aside", log)
        self.assertIn(said, log)
        self.assertEqual(self.must("GET", "/v1/host")["trouble"], "")
        uuid = self.must("POST", "/v1/vtpms", {})["uuid"]
        self.assertTrue(self.save(uuid))
        before = self.everything()
        self.restart()
        self.assertNotIn("set aside", self.manager.process.log())
        self.assertEqual(self.everything(), before)

    def test_group_deleted_while_a_vtpm_was_made_in_it(self):
        self.opens("manager-store-race-create.tar.xz", "has 3 vTPMs")

    def test_ca_of_a_group_that_was_deleted(self):
        self.opens("manager-store-race-ca.tar.xz", "a CA of group 1, which is not there")

    def test_full(self):
        """It serves, deletes, steps its counter, grows, and then takes what it refused."""
        self.unpack("manager-store-full.tar.xz")
        self.manager.start()
        vtpms = self.must("GET", "/v1/vtpms")["vtpms"]
        self.assertGreater(len(vtpms), 1000)
        saved = [v["uuid"] for v in vtpms if v["saves"]]
        unsaved = [v["uuid"] for v in vtpms if not v["saves"]]
        self.assertTrue(self.save(saved[0]))
        self.assertFalse(self.save(unsaved[0]))  # that would make it larger
        self.assertEqual(self.call("POST", "/v1/vtpms", {})[0], 507)
        self.must("DELETE", f"/v1/vtpms/{unsaved[0]}")
        self.must("DELETE", f"/v1/vtpms/{saved[1]}")
        steps = self.must("GET", "/v1/freshness")["counter"]
        self.restart()
        self.assertGreater(self.must("GET", "/v1/freshness")["counter"], steps)
        self.assertTrue(self.save(saved[0]))
        self.run_command(VTPMCTL, f"--socket={self.api}", "store", "grow", "2M")
        self.assertTrue(all(self.save(u) for u in unsaved[1:20]))
        self.restart()
        self.must("POST", "/v1/vtpms", {})


class Full(Stored):
    def test_what_was_registered_is_served(self):
        """Registered while there was room; then all of them save, are renamed, reset and deleted, over restarts."""
        self.manager.options.append("--store-size=262144")
        self.manager.start(create=True)
        uuids_there = []
        while True:
            status, answer = self.call("POST", "/v1/vtpms", {})
            if status != 201:
                break
            uuids_there.append(answer["uuid"])
            self.assertLess(len(uuids_there), 2000)
        self.assertEqual(status, 507)
        self.assertIn("vtpmctl store grow", answer["action"])
        self.assertGreater(len(uuids_there), 100)
        self.manager.process.wait_log("over 80 %")
        for uuid in uuids_there:
            self.assertTrue(self.save(uuid))
        self.must("PATCH", f"/v1/vtpms/{uuids_there[0]}", {"name": "n" * 64})
        self.must("POST", f"/v1/vtpms/{uuids_there[1]}/reset")
        self.restart()
        for uuid in uuids_there[:1] + uuids_there[2:20]:  # an instance of the other asks for its reset first
            self.assertTrue(self.save(uuid))
        for uuid in uuids_there[20:30]:
            self.must("DELETE", f"/v1/vtpms/{uuid}")
        self.must("POST", "/v1/vtpms", {})
        text = self.must("GET", "/metrics").decode()
        figures = {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith("vtpmd_store_")}
        self.assertEqual(figures["vtpmd_store_writable"], 1)
        self.assertLessEqual(figures["vtpmd_store_used_bytes"], figures["vtpmd_store_reserved_bytes"])
        self.run_command(VTPMCTL, f"--socket={self.api}", "store", "grow", "512K")
        self.assertEqual(os.stat(self.manager.store).st_size, 524288)
        self.assertEqual(self.run_command(VTPMCTL, f"--socket={self.api}", "store", "grow", "300K", ok=False)[0], harness.EX_USAGE)
        self.assertEqual(self.run_command(VTPMCTL, f"--socket={self.api}", "store", "grow", "much", ok=False)[0], harness.EX_USAGE)
        self.must("POST", "/v1/vtpms", {})
        self.restart()
        self.assertTrue(self.save(uuids_there[0]))

    def test_created_and_deleted_again_and_again(self):
        """Tombstones retire: a small store goes on after more pairs than it could ever hold."""
        self.manager.options.append("--store-size=262144")
        self.manager.start(create=True)
        for number in range(2000):
            uuid = self.must("POST", "/v1/vtpms", {})["uuid"]
            if number % 10 == 0:
                self.assertTrue(self.save(uuid))
            self.must("DELETE", f"/v1/vtpms/{uuid}")
        self.assertLess(self.must("GET", "/v1/host")["tombstones"], 500)
        self.restart()
        self.must("POST", "/v1/vtpms", {})


if __name__ == "__main__":
    harness.main()
