"""boto3 with credentials of a pod's own. Arguments: endpoints of EC2, STS and Pod Identity, a role, and a token for each of the latter two."""
import os
import sys

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

ec2, sts, pods, role, token, pod_token = sys.argv[1:]
once = {"retries": {"total_max_attempts": 1}}
anonymous = boto3.client("sts", endpoint_url=sts, config=Config(signature_version=UNSIGNED, **once))


def take(**change):
    return anonymous.assume_role_with_web_identity(**{"RoleArn": role, "RoleSessionName": "s-1", "WebIdentityToken": token, **change})


def refused(code, status, **change):
    try:
        take(**change)
    except ClientError as e:
        got = (e.response["Error"]["Code"], e.response["ResponseMetadata"]["HTTPStatusCode"])
        assert got == (code, status), (got, e)
        assert len(e.response["ResponseMetadata"]["RequestId"]) == 36, e.response
        return
    raise AssertionError(f"{change} was not refused with {code}")


got = take(DurationSeconds=900)
assert got["AssumedRoleUser"]["Arn"].endswith(":assumed-role/pods/s-1"), got
assert got["Audience"] == "sts.amazonaws.com" and got["Credentials"]["Expiration"].tzinfo, got
refused("InvalidIdentityToken", 400, WebIdentityToken=pod_token)
refused("AccessDenied", 403, RoleArn=role + "2")

keys = got["Credentials"]
session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"])
session.client("ec2", endpoint_url=ec2, config=Config(**once)).describe_subnets()
who = session.client("sts", endpoint_url=sts, config=Config(**once)).get_caller_identity()
assert who["Arn"] == got["AssumedRoleUser"]["Arn"] and who["Account"] == "123456789012", who

# This version knows the token's variable, but not yet the one of its file.
os.environ.update(AWS_CONTAINER_CREDENTIALS_FULL_URI=pods + "v1/credentials", AWS_CONTAINER_AUTHORIZATION_TOKEN=pod_token)
session = boto3.Session()
assert session.get_credentials().method == "container-role", session.get_credentials().method
who = session.client("sts", endpoint_url=sts, config=Config(**once)).get_caller_identity()
assert who["Arn"].endswith(":assumed-role/pods/eks-cluster-u-1"), who
print("all well")
