// Command image checks a container image that was saved as an OCI layout: what it runs as, what it starts, what lies in
// it and how big it is. build.sh beside it makes such layouts without a registry; `make image-ci` does both.
package main
