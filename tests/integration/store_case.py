"""What the tests of the manager's store share: a manager with its management socket, and what is there."""
import http.client
import json
import os
import socket
import struct
import uuid as uuids

import harness
import tpm

HELLO, SAVE = 0x56500001, 1


class Api(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=harness.PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class Stored(harness.Case):
    def setUp(self):
        super().setUp()
        self.api = self.path("api.sock")
        self.manager = harness.Manager(self, options=["--auto-create", f"--api=unix:{self.api}"])

    def call(self, method, target, body=None):
        """(status, answer)"""
        api = Api(self.api)
        try:
            api.request(method, target, body=None if body is None else json.dumps(body))
            answer = api.getresponse()
            data = answer.read()
            if answer.getheader("Content-Type", "").startswith("application/json") and data:
                return answer.status, json.loads(data)
            return answer.status, data
        finally:
            api.close()

    def must(self, method, target, body=None):
        status, answer = self.call(method, target, body)
        self.assertIn(status, (200, 201, 204), answer)
        return answer

    def restart(self, status=0):
        self.manager.process.popen.terminate()
        self.assertEqual(self.manager.process.wait(), status)
        self.manager.start()

    def everything(self):
        return {what: sorted(self.must("GET", f"/v1/{what}")[what], key=lambda one: one["uuid"]) for what in ("vtpms", "groups")}

    def save(self, uuid):
        """What an instance says: hello, and a key. Whether both were taken. In a process of its own, as an instance is: the
        manager takes a vTPM for one in use as long as the process that had it is there."""
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(0 if self.say_save(uuid) else 1)
            except BaseException:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.assertIn(status, (0, 1))
        return status == 0

    def say_save(self, uuid):
        link = tpm.ManagerLink(self.manager.socket)
        try:
            hello = struct.pack(">H", 1) + uuids.UUID(uuid).bytes + bytes([2]) + struct.pack(">I", 1)
            return link.call(HELLO, hello)[0] == 0 and link.call(SAVE, b"\x11" * 64)[0] == 0
        finally:
            link.close()
