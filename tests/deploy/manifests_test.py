"""The manifests of deploy/kubernetes, as far as they can be checked without a cluster."""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

try:
    import yaml
except ImportError:
    print("skipped: Python has no yaml (apt install python3-yaml)")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
API = {"PersistentVolumeClaim": "v1", "Service": "v1", "ConfigMap": "v1", "Deployment": "apps/v1", "StatefulSet": "apps/v1"}
NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class UniqueKeys(yaml.SafeLoader):
    """A key that stands twice is an error, not the later one."""


def mapping(loader, node):
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: a key stands twice"
    return loader.construct_mapping(node, deep=True)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)


class Manifests(unittest.TestCase):
    def objects(self, name):
        return list(yaml.load_all((ROOT / "deploy/kubernetes" / name).read_text(), UniqueKeys))

    def check_pods(self, item, objects):
        spec = item["spec"]
        pod = spec["template"]
        self.assertEqual(spec["selector"]["matchLabels"], pod["metadata"]["labels"])
        if item["kind"] == "StatefulSet":
            self.assertIn(spec["serviceName"], [o["metadata"]["name"] for o in objects if o["kind"] == "Service"])
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for volume in volumes.values():
            self.assertEqual(len(set(volume) - {"name"}), 1)
            for kind, key, field in (("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
                                     ("ConfigMap", "configMap", "name")):
                if key in volume:
                    self.assertIn(volume[key][field], [o["metadata"]["name"] for o in objects if o["kind"] == kind])
        for container in pod["spec"]["containers"]:
            self.assertTrue(container["image"])
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            for mount in container.get("volumeMounts", []):
                self.assertIn(mount["name"], volumes)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                if probe in container:
                    self.assertIn(container[probe]["httpGet"]["port"], ports)
            for word in container.get("command", []) + container.get("args", []):
                self.assertIsInstance(word, str)
        for volume in volumes:
            self.assertIn(volume, [m["name"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]])
        return pod["metadata"]["labels"], {name for c in pod["spec"]["containers"] for name in
                                           [port["name"] for port in c["ports"]]}

    def test_objects_have_what_their_kinds_require_and_name_what_is_there(self):
        for name in ("vllm.yaml", "lathe.yaml"):
            with self.subTest(file=name):
                objects = self.objects(name)
                names = [(o["kind"], o["metadata"]["name"]) for o in objects]
                self.assertEqual(len(names), len(set(names)))
                pods = []
                for item in objects:
                    self.assertEqual(item["apiVersion"], API[item["kind"]])
                    self.assertTrue(NAME.fullmatch(item["metadata"]["name"]))
                    if "template" in item.get("spec", {}):
                        pods.append(self.check_pods(item, objects))
                for item in objects:
                    if item["kind"] != "Service":
                        continue
                    chosen = [ports for labels, ports in pods if item["spec"]["selector"].items() <= labels.items()]
                    self.assertEqual(len(chosen), 1)
                    for port in item["spec"]["ports"]:
                        self.assertIn(port["targetPort"], chosen[0])

    def gateway(self):
        return next(o for o in self.objects("lathe.yaml") if o["kind"] == "ConfigMap")["data"]["nginx.conf"]

    def test_the_gateway_knows_every_replica(self):
        replicas = next(o for o in self.objects("lathe.yaml") if o["kind"] == "StatefulSet")
        servers = re.findall(r"server (\S+):(\d+) ", self.gateway())
        everyone = [(f"lathe-{i}.lathe", "8000") for i in range(replicas["spec"]["replicas"])]
        self.assertEqual(servers, 2 * everyone)  # replicas, and others

    def test_the_gateway_does_what_the_one_alone_does(self):
        def directives(text):
            text = re.sub(r"#[^\n]*", "", text)
            return sorted(re.findall(r"(?:proxy_next_upstream|proxy_intercept_errors|error_page)[^;{]*;", text))
        self.assertEqual(directives(self.gateway()), directives((ROOT / "deploy/gateway/nginx.conf").read_text()))

    def test_metrics_that_are_scraped_need_no_key(self):
        for item in self.objects("lathe.yaml"):
            annotations = item.get("spec", {}).get("template", {}).get("metadata", {}).get("annotations", {})
            if annotations.get("prometheus.io/scrape") == "true":
                command = item["spec"]["template"]["spec"]["containers"][0]["command"]
                self.assertIn("--api-key-file", command)
                self.assertIn("--metrics-without-key", command)
                break
        else:
            self.fail("nothing is scraped")

    def test_nginx_accepts_the_gateway(self):
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin")
        if nginx is None:
            self.skipTest("no nginx (apt install nginx-light)")
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "nginx.conf"
            path.write_text(re.sub(r"lathe-(\d)\.lathe", r"127.0.0.1\1", self.gateway()).replace("127.0.0.10", "127.0.0.1")
                            .replace("127.0.0.11", "127.0.0.2").replace("/tmp/", folder + "/"))
            done = subprocess.run([nginx, "-t", "-c", str(path)], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_scripts_refuse_wrong_arguments(self):
        script = ROOT / "deploy/vllm-ray"
        for arguments in ([], ["tail"], ["worker"], ["serve", "/"], ["serve", "/", "0", "1"], ["serve", "/", "2", "x"]):
            done = subprocess.run([script, *arguments], capture_output=True, text=True)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn("vllm-ray head", done.stderr)
        done = subprocess.run([script, "serve", "/none", "2", "1"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr.count("\n")), (1, 1))


if __name__ == "__main__":
    unittest.main()
