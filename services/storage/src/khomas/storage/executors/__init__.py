"""Other engines that move files for us, each a plug-in of the entry-point group `khomas.storage.executors`."""
