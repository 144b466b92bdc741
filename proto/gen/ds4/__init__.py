"""Generated code of the contract; see proto/ds4/v1. Do not edit."""
