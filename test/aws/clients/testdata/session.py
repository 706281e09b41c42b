"""A boto3 session against the emulator. Arguments: endpoint, two interface ids."""
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, eni1, eni2 = sys.argv[1:]
once = Config(retries={"total_max_attempts": 1})


def client(**kw):
    return boto3.client("ec2", endpoint_url=endpoint, config=once, **kw)


def refused(code, status, call, **kw):
    try:
        call(**kw)
    except ClientError as e:
        got = (e.response["Error"]["Code"], e.response["ResponseMetadata"]["HTTPStatusCode"])
        assert got == (code, status), (got, e)
        assert len(e.response["ResponseMetadata"]["RequestId"]) == 36, e.response
        return e.response["Error"]["Message"]
    raise AssertionError(f"{kw} was not refused with {code}")


ec2 = client()
got = ec2.assign_private_ip_addresses(
    NetworkInterfaceId=eni1, PrivateIpAddresses=["10.0.1.30", "10.0.1.31"], AllowReassignment=True)
assert [a["PrivateIpAddress"] for a in got["AssignedPrivateIpAddresses"]] == ["10.0.1.30", "10.0.1.31"], got
got = ec2.assign_ipv6_addresses(NetworkInterfaceId=eni1, Ipv6Addresses=["fd00:1::30"])
assert got["AssignedIpv6Addresses"] == ["fd00:1::30"], got

# The way a tool moves an IPv6 address: find the holder, unassign there, assign here.
refused("InvalidParameterValue", 400, ec2.assign_ipv6_addresses, NetworkInterfaceId=eni2, Ipv6Addresses=["fd00:1::30"])
holder = ec2.describe_network_interfaces(Filters=[{"Name": "ipv6-addresses.ipv6-address", "Values": ["fd00:1::30"]}])
assert [n["NetworkInterfaceId"] for n in holder["NetworkInterfaces"]] == [eni1], holder
ec2.unassign_ipv6_addresses(NetworkInterfaceId=eni1, Ipv6Addresses=["fd00:1::30"])
ec2.assign_ipv6_addresses(NetworkInterfaceId=eni2, Ipv6Addresses=["fd00:1::30"])

message = refused("InvalidParameterValue", 400, ec2.unassign_private_ip_addresses,
                  NetworkInterfaceId=eni2, PrivateIpAddresses=["10.0.1.30"])
assert message == f"Some of the specified addresses are not assigned to interface {eni2}", message
refused("InvalidNetworkInterfaceID.NotFound", 400, ec2.describe_network_interfaces, NetworkInterfaceIds=["eni-0dead"])
refused("PrivateIpAddressLimitExceeded", 400, ec2.assign_private_ip_addresses,
        NetworkInterfaceId=eni1, SecondaryPrivateIpAddressCount=9)
refused("InvalidParameterCombination", 400, ec2.describe_network_interfaces, NetworkInterfaceIds=[eni1], MaxResults=5)
refused("DryRunOperation", 412, ec2.describe_subnets, DryRun=True)
refused("InvalidAction", 400, ec2.describe_vpcs)

pages = list(ec2.get_paginator("describe_network_interfaces").paginate(PaginationConfig={"PageSize": 5}))
everything = [n for p in pages for n in p["NetworkInterfaces"]]
assert len(everything) == 3, everything
for n in everything:
    assert n["PrivateIpAddress"] == n["PrivateIpAddresses"][0]["PrivateIpAddress"], n
    assert n["PrivateIpAddresses"][0]["Primary"] is True and n["Attachment"]["Status"] == "attached", n
    assert isinstance(n["Ipv6Addresses"], list) and isinstance(n["TagSet"], list) and isinstance(n["Groups"], list), n
types = [t for p in ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 20}) for t in p["InstanceTypes"]]
assert len(types) > 30, len(types)

ec2.get_waiter("network_interface_available")  # the model knows it; nothing to wait for
resource = boto3.resource("ec2", endpoint_url=endpoint).NetworkInterface(eni2)
resource.assign_private_ip_addresses(PrivateIpAddresses=["10.0.1.40"])
resource.reload()
assert "10.0.1.40" in [a["PrivateIpAddress"] for a in resource.private_ip_addresses], resource.private_ip_addresses

refused("AuthFailure", 401, client(aws_access_key_id="AKIALIMITED", aws_secret_access_key="wrong").describe_subnets)
limited = client(aws_access_key_id="AKIALIMITED", aws_secret_access_key="limited")
limited.describe_subnets()
message = refused("UnauthorizedOperation", 403, limited.assign_private_ip_addresses,
                  NetworkInterfaceId=eni1, PrivateIpAddresses=["10.0.1.50"])
assert message.startswith("You are not authorized to perform this operation. User: arn:aws:iam::"), message

# A presigned GET, with everything in the query.
import urllib.request
url = limited.generate_presigned_url("describe_subnets", Params={"SubnetIds": ["subnet-0a000000000000001"]}, HttpMethod="GET")
body = urllib.request.urlopen(url).read().decode()
assert "<subnetId>subnet-0a000000000000001</subnetId>" in body, body
print("all well")
