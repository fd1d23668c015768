FILE *fmemopen(void *buffer, size_t size, const char *mode);
int fclose(FILE *file);
