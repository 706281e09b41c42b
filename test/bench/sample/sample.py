"""What the AWS Python sample for Multus pods does, written anew from a description of it.

Like the sample it asks IMDS who it is (without a token first), describes the instance and the subnet of each ENI, takes the
addresses from the output of "ip a", and assigns them in child processes; for IPv6 it first searches the holders and
releases the addresses there. Told "sidecar" it goes on: every half second it runs "ip a" and does the same for addresses that
are new. It is kinder than the sample: one client serves parent and children, device 0's subnet is not described, the holders
of all IPv6 addresses are searched in one call, a failed call is a failure, which a sidecar tries again with the next list, and
an address that has gone and comes back is new.
"""
import ipaddress
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3

IMDS = "http://169.254.169.254/latest/"


def identity():
    url = IMDS + "dynamic/instance-identity/document"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 401:
            raise
    put = urllib.request.Request(IMDS + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "21600"})
    with urllib.request.urlopen(put, timeout=5) as answer:
        token = answer.read().decode()
    get = urllib.request.Request(url, headers={"X-aws-ec2-metadata-token": token})
    with urllib.request.urlopen(get, timeout=5) as answer:
        return json.load(answer)


def attached(ec2, instance):
    """CIDR block of each ENI's subnet -> ENI, without device 0."""
    blocks = {}
    for reservation in ec2.describe_instances(InstanceIds=[instance])["Reservations"]:
        for described in reservation["Instances"]:
            for eni in described["NetworkInterfaces"]:
                if eni["Attachment"]["DeviceIndex"] == 0:
                    continue
                for subnet in ec2.describe_subnets(SubnetIds=[eni["SubnetId"]])["Subnets"]:
                    blocks[subnet["CidrBlock"]] = eni["NetworkInterfaceId"]
                    for block in subnet.get("Ipv6CidrBlockAssociationSet", []):
                        blocks[block["Ipv6CidrBlock"]] = eni["NetworkInterfaceId"]
    return blocks


def local(blocks):
    """ENI -> addresses, of the addresses whose own network is the block of an ENI's subnet; IPv4 and IPv6 apart."""
    listed = subprocess.run("ip a | grep -v eth0 | grep 'scope global' | awk '{print $2}'", shell=True, check=True,
                            stdout=subprocess.PIPE, text=True).stdout.split()
    wanted = {4: {}, 6: {}}
    for address in map(ipaddress.ip_interface, listed):
        eni = blocks.get(str(address.network))
        if eni:
            wanted[address.version].setdefault(eni, []).append(str(address.ip))
    return wanted


def children(calls):
    """Makes all calls at once, each in a process of its own, and tells whether all succeeded."""
    started = [multiprocessing.Process(target=call, kwargs=arguments) for call, arguments in calls]
    for child in started:
        child.start()
    for child in started:
        child.join()
    return not any(child.exitcode for child in started)


def assign(ec2, wanted):
    """Assigns addresses, by version and ENI, and tells whether that succeeded."""
    ec2.close()  # a connection must not be shared with children
    if not children([(ec2.assign_private_ip_addresses, {"NetworkInterfaceId": eni, "PrivateIpAddresses": addresses, "AllowReassignment": True})
                     for eni, addresses in wanted[4].items()]):
        return False
    if not wanted[6]:
        return True
    six = [address for addresses in wanted[6].values() for address in addresses]
    holders = ec2.describe_network_interfaces(Filters=[{"Name": "ipv6-addresses.ipv6-address", "Values": six}])["NetworkInterfaces"]
    ec2.close()
    return children([(ec2.unassign_ipv6_addresses, {"NetworkInterfaceId": eni["NetworkInterfaceId"], "Ipv6Addresses": six}) for eni in holders]) \
        and children([(ec2.assign_ipv6_addresses, {"NetworkInterfaceId": eni, "Ipv6Addresses": addresses}) for eni, addresses in wanted[6].items()])


def follow(ec2, blocks):
    """Lists the addresses until it is told to end, and assigns those that are new. At the end it tells how many lists it made."""
    assigned = set()
    lists = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"lists: {lists}"))
    while True:
        lists += 1
        here = local(blocks)
        fresh = {version: {eni: new for eni, addresses in by_eni.items() if (new := [a for a in addresses if a not in assigned])}
                 for version, by_eni in here.items()}
        listed = {a for by_eni in here.values() for addresses in by_eni.values() for a in addresses}
        assigned = listed if not any(fresh.values()) or assign(ec2, fresh) else assigned & listed
        time.sleep(0.5)


def main():
    me = identity()
    session = boto3.session.Session(region_name=me["region"])
    ec2 = session.client("ec2", endpoint_url=os.environ.get("AWS_ENDPOINT_URL_EC2"))
    blocks = attached(ec2, me["instanceId"])
    if "sidecar" in sys.argv:
        follow(ec2, blocks)
    wanted = local(blocks)
    if not wanted[4] and not wanted[6]:
        sys.exit("no address is in a subnet of an ENI")
    if not assign(ec2, wanted):
        sys.exit("a call failed")


main()
