"""The HTTP door to files on local disks, for whoever holds an AccessGrant."""
