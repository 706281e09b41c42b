// Package clients holds the tests that run clients nobody here wrote against the emulator: the AWS SDK for Go, the AWS
// CLI and boto3. They are a package of their own because they are slow to build or to run.
package clients
