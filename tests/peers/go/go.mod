module llamafu.test/clients

go 1.22
