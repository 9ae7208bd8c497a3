import subprocess


def test_fails() -> None:
    told = "what the test printed"
    print(told)
    assert told == "something else"


def test_leaks() -> None:
    subprocess.run(["ip", "link", "add", "name", "leaky0", "type", "bridge"], check=True)
