"""Addresses: read rightly, refused before any work, and never repeated with what is secret in them."""

from __future__ import annotations

import pytest

from edge_effdet.errors import UsageError
from edge_effdet.sending.addresses import check_ros_topic, mqtt_address, webhook_address


def test_an_address_of_mqtt():
    address = mqtt_address("mqtt://broker/line/1")
    assert (address.host, address.port, address.secure, address.target) == ("broker", 1883, False, "line/1")
    assert (address.user, address.password) == (None, None)
    address = mqtt_address("mqtts://me:p%40ss%2Fw%C3%B6rd@[::1]:999/a%20b")
    assert (address.host, address.port, address.secure, address.target) == ("::1", 999, True, "a b")
    assert (address.user, address.password) == ("me", "p@ss/wörd")
    assert address.shown == "mqtts://[::1]:999/a b"
    assert "wörd" not in repr(address)


def test_an_address_of_a_webhook():
    address = webhook_address("https://me:secret@host/hook/ü?token=t0k3n&x=1")
    assert (address.host, address.port, address.secure) == ("host", 443, True)
    assert address.target == "/hook/%C3%BC?token=t0k3n&x=1"
    # The path of a chat's webhook is its secret.
    assert address.shown == "https://host:443"
    assert webhook_address("http://host:8080").target == "/"
    assert webhook_address("http://host/a%2Fb").target == "/a%2Fb"


@pytest.mark.parametrize(
    "text",
    [
        "broker/topic", "http://broker/topic", "mqtt://broker", "mqtt://broker/", "mqtt:///topic", "mqtt://broker:port/topic", "mqtt://broker:99999/t",
        "mqtt://broker/a/#", "mqtt://broker/a/+/b", "mqtt://broker/a/%23", "mqtt://broker/a?b=c", "mqtt://bro ker/topic", "mqtt://broker/a%00b",
        "mqtt://broker/a%ffb", "mqtt://me:secret/word@broker/topic", f"mqtt://broker/{'x' * 65536}", "mqtt://[::1/topic",
    ],
)  # fmt: skip
def test_a_wrong_address_of_mqtt_is_one_sentence_without_what_was_given(text):
    with pytest.raises(UsageError, match="`mqtt`") as caught:
        mqtt_address(text)
    assert "secret" not in str(caught.value) and "broker" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["host/path", "mqtt://host/path", "http://", "https://host:x/", "http://host/#part", "http://me:secret@/x"]
)
def test_a_wrong_address_of_a_webhook_is_one_sentence_without_what_was_given(text):
    with pytest.raises(UsageError, match="`webhook`") as caught:
        webhook_address(text)
    assert "secret" not in str(caught.value)


def test_topics_of_ros():
    for text in ("/detections", "detections", "~/found", "/a_1/b"):
        check_ros_topic(text)
    for text in ("", "/", "/1a", "a/", "a//b", "a__b", "/a-b", "/ä"):
        with pytest.raises(UsageError, match="`ros`"):
            check_ros_topic(text)
