"""The messages of the gRPC contracts, generated from `protos/` by `python -m tests.pb`; do not edit by hand.

Only messages: servers use generic handlers over raw bytes and clients `channel.unary_unary`, so there are no stubs.
Each file is known to protobuf's pool by its path here (`nodeplug/pb/kms/v1beta1.proto`), because KMS and the device
plugin contract are both `package v1beta1` and have to live in one process.
"""
